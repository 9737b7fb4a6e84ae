# SPDX-License-Identifier: GPL-2.0-or-later
"""TDCALL by hand, for a TD whose low memory is mapped: what a hostile guest sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi import tdx
from guestemu.abi.addresses import Gpa, to_signed
from guestemu.abi.tdx import TdcallLeaf, Vmcall
from guestemu.abi.x86 import Mode
from guestemu.guest.base import CallOutcome
from guestemu.machine import layout
from guestemu.machine.exits import Halt
from guestemu.machine.machine import Machine

_ADDRESS: Final = layout.STUB + 0x60
_HLT: Final = b"\xf4"
_REGISTERS: Final = ("rax", "rcx", "r10", "r11", "r12", "r13", "rsp")
_STATE: Final = (Mode.LONG64, 0)
_EXPOSED: Final = 0xFFCC


class TdStub:
    """`switch` is called with the mode and level before each start (it flushes the TLB if need
    be)."""

    def __init__(self, machine: Machine, switch: Callable[[tuple[Mode, int]], None]) -> None:
        machine.ram.write(Gpa(_ADDRESS), tdx.TDCALL + _HLT)
        self._machine = machine
        self._switch = switch
        self._entry = machine.launcher.entry(_REGISTERS)
        self._entry.use(machine.modes.context(*_STATE))

    def map_gpa(self, gpa: int, size: int, private: bool, budget: int) -> CallOutcome:
        """MapGPA; the value is R10."""
        start = self._machine.bit.select(0, private) | gpa
        registers = (TdcallLeaf.VP_VMCALL, _EXPOSED, 0, Vmcall.MAP_GPA, start, size)
        return self._run(registers, "r10", budget)

    def page_accept(self, rcx: int, budget: int) -> CallOutcome:
        """ACCEPT with `rcx`; the value is RAX."""
        return self._run((TdcallLeaf.MEM_PAGE_ACCEPT, rcx, 0, 0, 0, 0), "rax", budget)

    def _run(self, registers: tuple[int, ...], result: str, budget: int) -> CallOutcome:
        self._switch(_STATE)
        for index, value in enumerate((*registers, layout.USER_STACK)):
            self._entry.values[index] = value
        vcpu = self._machine.current
        vcpu.deliver = False
        end = vcpu.run(_ADDRESS, budget, self._entry)
        vcpu.deliver = True
        if isinstance(end, Halt):
            return CallOutcome(to_signed(vcpu.read_register(result), 64))
        return CallOutcome(None, end)
