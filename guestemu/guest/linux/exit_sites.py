# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of a TD's kernel that raise #VE on hardware and that the emulator answers in place.

Source: handle_cpuid(), handle_io() and handle_halt() of arch/x86/coco/tdx/tdx.c (facts T6, T8). The
module answers CPUID itself outside of the hypervisor's range, so only leaves 0x40000000 to
0x4fffffff raise one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import capstone

from guestemu.abi import tdx
from guestemu.abi.addresses import U32_MASK
from guestemu.guest.linux.kernel import KERNEL_MAP, Kernel
from guestemu.guest.td import Td, VirtualException
from guestemu.machine.machine import Machine
from guestemu.machine.vcpu import Vcpu

_HYPERVISOR_LEAVES: Final = 0x4
_LONGEST_FUNCTION: Final = 4096
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


def _port(code: bytes) -> _Raised | None:
    """IN or OUT: size, direction and port as the VMX exit qualification has them."""
    opcode = code[1] if code[0] == _OPERAND_SIZE else code[0]
    if opcode not in _PORTS:
        return None
    size, is_in, is_immediate = _PORTS[opcode]
    if size > 1 and code[0] == _OPERAND_SIZE:
        size = 2
    fixed = size - 1 | is_in << 3 | is_immediate << 6

    def raised(vcpu: Vcpu) -> VirtualException:
        port = code[-1] if is_immediate else vcpu.read_register("rdx") & 0xFFFF
        return VirtualException(
            reason=tdx.EXIT_REASON_IO, qualification=fixed | port << 16, length=len(code)
        )

    return raised


def _raised_by(mnemonic: str, code: bytes) -> _Raised | None:
    if mnemonic == "cpuid":
        return _cpuid
    if mnemonic == "hlt":
        return _hlt
    return _port(code) if mnemonic in {"in", "out"} else None


def reflect_exits(machine: Machine, kernel: Kernel, td: Td, functions: Iterable[str]) -> int:
    """From now on CPUID of the hypervisor's leaves, IN, OUT and HLT in `functions` raise #VE, and
    the kernel's own handler asks by TDG.VP.VMCALL. Returns how many instructions that are.

    Only after the kernel has its IDT. String instructions stay answered in place. Raises
    `InputError` for a function that the kernel lacks.
    """
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    starts = sorted(set(kernel.symbols.values()))
    found = 0
    for name in functions:
        start = kernel.address(name)
        end = next((one for one in starts if one > start), start + _LONGEST_FUNCTION)
        physical = start - KERNEL_MAP
        code = bytes(machine.ram.private[physical : physical + min(end - start, _LONGEST_FUNCTION)])
        for address, size, mnemonic, _operands in engine.disasm_lite(code, start):
            at = address - start
            raised = _raised_by(mnemonic, code[at : at + size])
            if raised is not None:
                td.raise_at(address, raised)
                found += 1
    machine.hooks.forget_code()
    return found
