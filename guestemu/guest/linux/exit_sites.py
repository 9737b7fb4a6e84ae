# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of a TD that raise #VE on hardware: CPUID, IN, OUT, INS, OUTS and HLT.

The emulator cannot stop in front of these by kind, so each block of code is looked through before
it first runs, and the instructions are hooked by address: in the kernel, in modules and in user
space. The kernel's handler then asks by TDG.VP.VMCALL: handle_cpuid(), handle_io() and
handle_halt() of arch/x86/coco/tdx/tdx.c (facts T6, T8); string I/O it refuses, and of user space it
takes CPUID only. The module answers CPUID itself outside of the hypervisor's range, so only leaves
0x40000000 to 0x4fffffff raise one.

Ports and HLT in user mode are left to the CPU, which refuses them (#GP) unless the kernel gave the
process a port.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import capstone

from guestemu.abi import tdx
from guestemu.abi.addresses import U32_MASK, Gva
from guestemu.guest.linux.kernel import KERNEL_MAP
from guestemu.guest.td import Td, VirtualException
from guestemu.machine.machine import Machine
from guestemu.machine.new_code import show_new_code
from guestemu.machine.vcpu import Vcpu

_OPCODES: Final = re.compile(rb"[\x6c-\x6f\xe4-\xe7\xec-\xef\xf4]|\x0f\xa2")
_MODULES: Final = KERNEL_MAP + (1 << 30)
"""Up to here the kernel's image is mapped, its first byte at GPA 0."""

_USER_END: Final = 1 << 47
_USER: Final = 3
_MOST_SITES: Final = 10_000
"""Of one machine; of a guest that keeps writing new code the others are answered in place."""

_HYPERVISOR_LEAVES: Final = 0x4
_OPERAND_SIZE: Final = 0x66
_REPEATED: Final = frozenset({0xF2, 0xF3})
_PORTS: Final = {
    opcode: (size, is_in, is_immediate, is_string)
    for opcode, size, is_in, is_immediate, is_string in (
        *((0xE4, 1, True, True, False), (0xE5, 4, True, True, False)),
        *((0xE6, 1, False, True, False), (0xE7, 4, False, True, False)),
        *((0xEC, 1, True, False, False), (0xED, 4, True, False, False)),
        *((0xEE, 1, False, False, False), (0xEF, 4, False, False, False)),
        *((0x6C, 1, True, False, True), (0x6D, 4, True, False, True)),
        *((0x6E, 1, False, False, True), (0x6F, 4, False, False, True)),
    )
}
"""Bytes, direction, whether the port is in the instruction, and whether it is a string
instruction, by opcode."""

_PREFIXES: Final = frozenset({_OPERAND_SIZE, *_REPEATED, *range(0x40, 0x50)})
_PORT_NAMES: Final = frozenset({"in", "out", "insb", "insw", "insd", "outsb", "outsw", "outsd"})

_Raised = Callable[[Vcpu], VirtualException | None]


def _cpuid(vcpu: Vcpu) -> VirtualException | None:
    if (vcpu.read_register("rax") & U32_MASK) >> 28 != _HYPERVISOR_LEAVES:
        return None
    return VirtualException(reason=tdx.EXIT_REASON_CPUID, length=2)


def _hlt(vcpu: Vcpu) -> VirtualException | None:
    return None if vcpu.cpl else VirtualException(reason=tdx.EXIT_REASON_HLT, length=1)


def _port(code: bytes, td: Td) -> _Raised | None:
    """Size, direction and port as the VMX exit qualification has them."""
    at = next((place for place, byte in enumerate(code) if byte not in _PREFIXES), 0)
    prefixes = code[:at]
    if code[at] not in _PORTS:
        return None
    size, is_in, is_immediate, is_string = _PORTS[code[at]]
    if size > 1 and _OPERAND_SIZE in prefixes:
        size = 2
    is_repeated = is_string and not _REPEATED.isdisjoint(prefixes)
    fixed = size - 1 | is_in << 3 | is_string << 4 | is_repeated << 5 | is_immediate << 6

    def raised(vcpu: Vcpu) -> VirtualException | None:
        port = code[-1] if is_immediate else vcpu.read_register("rdx") & 0xFFFF
        if port in td.ports_in_place or vcpu.cpl:
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
    return _port(code, td) if mnemonic.rpartition(" ")[2] in _PORT_NAMES else None


def _while_unchanged(code: bytes, raised: _Raised) -> _Raised:
    """`raised`, while `code` stands at RIP: of modules and processes that come and go."""

    def checked(vcpu: Vcpu) -> VirtualException | None:
        return raised(vcpu) if vcpu.read_code(len(code)) == code else None

    return checked


def raise_exits(machine: Machine, td: Td) -> None:
    """From now on CPUID of the hypervisor's leaves, IN, OUT and HLT raise #VE where the IDT has a
    gate for it (`Td.raise_at`), in code of the kernel's half and in user mode. Before the kernel's
    code first runs."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    hooks, image = machine.hooks, machine.ram.private
    known: set[tuple[int, bytes]] = set()

    def read(address: int, size: int) -> bytes:
        if KERNEL_MAP <= address < _MODULES:
            return bytes(image[address - KERNEL_MAP : address - KERNEL_MAP + size])
        vcpu = hooks.vcpu
        return (vcpu and vcpu.read_memory(Gva(address), size)) or b""

    def look(address: int, size: int) -> bool:
        is_user = address < _USER_END
        if not is_user and address < KERNEL_MAP:
            return False
        code = read(address, size)
        if not _OPCODES.search(code) or (is_user and machine.current.cpl != _USER):
            return False
        count = len(known)
        for at, length, mnemonic, _operands in decoder.disasm_lite(code, address):
            instruction = code[at - address :][:length]
            raised = _raised_by(mnemonic, instruction, td)
            if raised is None or (at, instruction) in known or len(known) == _MOST_SITES:
                continue
            known.add((at, instruction))
            is_fixed = KERNEL_MAP <= at < _MODULES
            td.raise_at(at, raised if is_fixed else _while_unchanged(instruction, raised))
        return len(known) > count

    show_new_code(hooks, look)
