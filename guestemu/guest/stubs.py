# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw instructions in any mode: stubs in low memory, one bank for each way to end.

At CPL 0 a stub ends with HLT, which stops the CPU by itself; above, where HLT is #GP, with a UD2
that the hooks know (half a microsecond more).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from guestemu.abi.addresses import U32_MASK, Gpa
from guestemu.abi.regions import Instruction
from guestemu.abi.x86 import Mode
from guestemu.guest.base import CallOutcome, RawRegisters
from guestemu.machine import layout
from guestemu.machine.exits import Halt, Trap
from guestemu.machine.launch import Entry
from guestemu.machine.machine import Machine

_HLT: Final = b"\xf4"
_UD2: Final = b"\x0f\x0b"
_SLOT: Final = 16
_USER_BANK: Final = 0x80
_CODES: Final = (b"\x0f\x01\xd9", b"\x0f\x01\xc1", b"\x0f\x32", b"\x0f\x30")
_RDMSR, _WRMSR = 2, 3
_REGISTERS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rsp")
_PUT: Final = struct.Struct(f"{len(_REGISTERS)}Q").pack_into


class Start(NamedTuple):
    """How one stub starts in one mode and level, and the exit by which it ends well."""

    entry: Entry
    rip: int
    state: tuple[Mode, int]
    end: type[Halt | Trap]
    end_rip: int


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
        self._starts: dict[tuple[int, Mode, int], Start] = {}
        self._ended = machine.launcher.ended

    def _start(self, slot: int, mode: Mode, cpl: int) -> Start:
        """The start of a stub in a mode and level, made when it is first used."""
        entry = self._machine.launcher.entry(_REGISTERS)
        entry.use(self._machine.modes.context(mode, cpl))
        address, after = self._stubs[slot]
        start = Start(entry, address, (mode, cpl), Halt, after)
        if cpl:
            address += _USER_BANK
            start = Start(entry, address, (mode, cpl), Trap, address + len(_CODES[slot]))
        self._starts[slot, mode, cpl] = start
        return start

    def vmmcall(self, mode: Mode, cpl: int) -> Start:
        """How VMMCALL starts in a mode and level."""
        slot = int(Instruction.VMMCALL)
        return self._starts.get((slot, mode, cpl)) or self._start(slot, mode, cpl)

    def _run(
        self, slot: int, registers: RawRegisters, mode: Mode, cpl: int, budget: int
    ) -> CallOutcome:
        entry, rip, state, end_type, end_rip = self._starts.get((slot, mode, cpl)) or self._start(
            slot, mode, cpl
        )
        self._switch(state)
        rax, rbx, rcx, rdx, rsi = registers
        _PUT(entry.values, 0, rax, rbx, rcx, rdx, rsi, layout.USER_STACK)
        vcpu = self._machine.current
        vcpu.deliver = False
        end = vcpu.run(rip, budget, entry)
        vcpu.deliver = True
        if type(end) is end_type and end.rip == end_rip:
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
        return self._run(instruction, registers, mode, cpl, budget)

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
