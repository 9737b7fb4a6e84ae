# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw instructions in any mode: stubs in low memory, one bank for each way to end.

At CPL 0 a stub ends with HLT, which stops the CPU by itself; above, where HLT is #GP, with a UD2
that the hooks know (half a microsecond more).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import U32_MASK, Gpa
from guestemu.abi.regions import Instruction
from guestemu.abi.x86 import Mode
from guestemu.guest.base import CallOutcome, RawRegisters
from guestemu.machine import layout
from guestemu.machine.exits import Halt, Trap
from guestemu.machine.machine import Machine

_HLT: Final = b"\xf4"
_UD2: Final = b"\x0f\x0b"
_SLOT: Final = 16
_USER_BANK: Final = 0x80
_CODES: Final = (b"\x0f\x01\xd9", b"\x0f\x01\xc1", b"\x0f\x32", b"\x0f\x30")
_RDMSR, _WRMSR = 2, 3
_REGISTERS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rsp")


class RawStubs:
    """VMMCALL, VMCALL, RDMSR and WRMSR at `layout.STUB`, for a machine whose low memory is mapped.

    Exceptions end a stub (they are not delivered): what the program wants to see is the exception.
    `switch` is told of the mode and level before each start (it flushes the TLB if need be).
    """

    def __init__(self, machine: Machine, switch: Callable[[tuple[Mode, int]], None]) -> None:
        self._machine = machine
        self._switch = switch
        self._stubs = tuple(
            (layout.STUB + _SLOT * slot, layout.STUB + _SLOT * slot + len(code) + len(_HLT))
            for slot, code in enumerate(_CODES)
        )
        for (address, _), code in zip(self._stubs, _CODES, strict=True):
            machine.ram.write(Gpa(address), code + _HLT)
            machine.ram.write(Gpa(address + _USER_BANK), code + _UD2)
            machine.hooks.traps.add(address + _USER_BANK + len(code))
        for bank in (0, _USER_BANK):
            machine.hooks.add_msr_site(self._stubs[_RDMSR][0] + bank, is_write=False)
            machine.hooks.add_msr_site(self._stubs[_WRMSR][0] + bank, is_write=True)
        self._entry = machine.launcher.entry(_REGISTERS)
        self._ended = machine.launcher.ended

    def _run(
        self, slot: int, registers: RawRegisters, mode: Mode, cpl: int, budget: int
    ) -> CallOutcome:
        machine = self._machine
        self._switch((mode, cpl))
        entry = self._entry
        entry.use(machine.modes.context(mode, cpl))
        values = entry.values
        values[0] = registers.rax
        values[1] = registers.rbx
        values[2] = registers.rcx
        values[3] = registers.rdx
        values[4] = registers.rsi
        values[5] = layout.USER_STACK
        vcpu = machine.current
        vcpu.deliver = False
        address, after = self._stubs[slot]
        end = vcpu.run(address + _USER_BANK if cpl else address, budget, entry)
        vcpu.deliver = True
        if type(end) is Halt and end.rip == after:
            return CallOutcome(self._ended[1])
        if type(end) is Trap and end.rip == address + _USER_BANK + len(_CODES[slot]):
            return CallOutcome(self._ended[1])
        return CallOutcome(None, end)

    def hypercall(
        self,
        instruction: Instruction,
        registers: RawRegisters,
        mode: Mode,
        cpl: int,
        budget: int,
    ) -> CallOutcome:
        """VMMCALL or VMCALL; the value is RAX."""
        return self._run(int(instruction), registers, mode, cpl, budget)

    def rdmsr(self, index: int, mode: Mode, cpl: int, budget: int) -> CallOutcome:
        """RDMSR; the value is EDX:EAX."""
        outcome = self._run(_RDMSR, RawRegisters(rcx=index), mode, cpl, budget)
        if outcome.value is None:
            return outcome
        high = self._machine.current.read_register("rdx") & U32_MASK
        return CallOutcome(high << 32 | outcome.value & U32_MASK)

    def wrmsr(self, index: int, value: int, mode: Mode, cpl: int, budget: int) -> CallOutcome:
        """WRMSR; the value is 0."""
        registers = RawRegisters(rax=value & U32_MASK, rcx=index, rdx=value >> 32)
        outcome = self._run(_WRMSR, registers, mode, cpl, budget)
        return CallOutcome(0) if outcome.value is not None else outcome
