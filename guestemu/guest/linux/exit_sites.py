# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of a TD's kernel that raise #VE on hardware: CPUID, IN, OUT and HLT.

The emulator cannot stop in front of these by kind, so every one in the kernel's text is found once,
by disassembling it function by function (five seconds; kept in the cache), and hooked by address.
The kernel's handler then asks by TDG.VP.VMCALL: handle_cpuid(), handle_io() and handle_halt() of
arch/x86/coco/tdx/tdx.c (facts T6, T8). The module answers CPUID itself outside of the hypervisor's
range, so only leaves 0x40000000 to 0x4fffffff raise one.

Answered in place all the same: string instructions, which a TD's kernel avoids
(CC_ATTR_GUEST_UNROLL_STRING_IO), modules, and user space.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import capstone
import msgspec

from guestemu.abi import tdx
from guestemu.abi.addresses import U32_MASK
from guestemu.guest.linux.cache import (
    CacheKey,
    cache_directory,
    mark_used,
    read_sealed,
    write_sealed,
)
from guestemu.guest.linux.kernel import KERNEL_MAP, Kernel
from guestemu.guest.td import Td, VirtualException
from guestemu.machine.machine import Machine
from guestemu.machine.vcpu import Vcpu

_TEXT: Final = (("_stext", "_etext"), ("_sinittext", "_einittext"))
_WANTED: Final = frozenset({"cpuid", "in", "out", "hlt"})
_OPCODES: Final = re.compile(rb"[\xe4-\xe7\xec-\xef\xf4]|\x0f\xa2")
_LONGEST: Final = 15
_FORMAT: Final = "exits 1"
_HYPERVISOR_LEAVES: Final = 0x4
_OPERAND_SIZE: Final = 0x66
_PORTS: Final = {
    opcode: (size, is_in, is_immediate)
    for opcode, size, is_in, is_immediate in (
        *((0xE4, 1, True, True), (0xE5, 4, True, True), (0xE6, 1, False, True)),
        *((0xE7, 4, False, True), (0xEC, 1, True, False), (0xED, 4, True, False)),
        *((0xEE, 1, False, False), (0xEF, 4, False, False)),
    )
}
"""Bytes, direction and whether the port is in the instruction, by opcode."""

_Raised = Callable[[Vcpu], VirtualException | None]


def _cpuid(vcpu: Vcpu) -> VirtualException | None:
    if (vcpu.read_register("rax") & U32_MASK) >> 28 != _HYPERVISOR_LEAVES:
        return None
    return VirtualException(reason=tdx.EXIT_REASON_CPUID, length=2)


def _hlt(_vcpu: Vcpu) -> VirtualException | None:
    return VirtualException(reason=tdx.EXIT_REASON_HLT, length=1)


def _port(code: bytes, td: Td) -> _Raised | None:
    """IN or OUT: size, direction and port as the VMX exit qualification has them."""
    opcode = code[1] if code[0] == _OPERAND_SIZE else code[0]
    if opcode not in _PORTS:
        return None
    size, is_in, is_immediate = _PORTS[opcode]
    if size > 1 and code[0] == _OPERAND_SIZE:
        size = 2
    fixed = size - 1 | is_in << 3 | is_immediate << 6

    def raised(vcpu: Vcpu) -> VirtualException | None:
        port = code[-1] if is_immediate else vcpu.read_register("rdx") & 0xFFFF
        if port in td.ports_in_place:
            return None
        return VirtualException(
            reason=tdx.EXIT_REASON_IO, qualification=fixed | port << 16, length=len(code)
        )

    return raised


def _raised_by(mnemonic: str, code: bytes, td: Td) -> _Raised | None:
    if mnemonic == "cpuid":
        return _cpuid
    if mnemonic == "hlt":
        return _hlt
    return _port(code, td) if mnemonic in {"in", "out"} else None


class ExitSite(msgspec.Struct, frozen=True):
    """One instruction: its virtual address, mnemonic and encoding."""

    address: int
    mnemonic: str
    code: bytes


def exit_sites(kernel: Kernel) -> tuple[ExitSite, ...]:
    """All CPUID, IN, OUT and HLT of the kernel's text, by address."""
    directory = cache_directory()
    if directory is None:
        return tuple(_find_sites(kernel))
    parts = (kernel.digest, _FORMAT, capstone.__version__)
    path = directory / f"{CacheKey(parts).name}.exits"
    kept = read_sealed(path)
    if kept is not None:
        with suppress(msgspec.MsgspecError):
            found = msgspec.msgpack.decode(kept, type=tuple[ExitSite, ...])
            mark_used(path)
            return found
    found = tuple(_find_sites(kernel))
    with suppress(OSError):  # the next run searches again
        write_sealed(path, msgspec.msgpack.encode(found))
    return found


def _find_sites(kernel: Kernel) -> Iterator[ExitSite]:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    starts = sorted(set(kernel.symbols.values()))
    for first, last in _TEXT:
        begin, end = kernel.address(first), kernel.address(last)
        text = _text(kernel, begin, end)
        functions = starts[bisect_left(starts, begin) : bisect_left(starts, end)]
        for start, after in zip(functions, [*functions[1:], end], strict=True):
            code = text[start - begin : after - begin]
            hits = [match.end() for match in _OPCODES.finditer(code)]
            if not hits:
                continue
            for address, size, mnemonic, _operands in engine.disasm_lite(
                code[: hits[-1] + _LONGEST], start
            ):
                if mnemonic in _WANTED:
                    at = address - start
                    yield ExitSite(address, mnemonic, code[at : at + size])


def _text(kernel: Kernel, begin: int, end: int) -> bytes:
    """The bytes of the image at virtual addresses `begin` to `end`; none where it has none."""
    physical = begin - KERNEL_MAP
    for part in kernel.segments.parts:
        if part.physical <= physical < part.physical + len(part.data):
            return part.data[physical - part.physical :][: end - begin]
    return b""


def raise_exits(machine: Machine, kernel: Kernel, td: Td) -> int:
    """From now on CPUID of the hypervisor's leaves, IN, OUT and HLT of the kernel raise #VE where
    its IDT has a gate for it (`Td.raise_at`). Returns how many instructions that are. Before the
    kernel's code first runs."""
    found = 0
    for site in exit_sites(kernel):
        raised = _raised_by(site.mnemonic, site.code, td)
        if raised is not None:
            td.raise_at(site.address, raised)
            found += 1
    return found
