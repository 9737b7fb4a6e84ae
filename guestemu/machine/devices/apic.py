# SPDX-License-Identifier: GPL-2.0-or-later
"""Local APICs in x2APIC mode: registers by MSR, IPIs, the TSC-deadline timer (Intel SDM volume 3,
chapter 11; AMD64 APM volume 2, chapter 16).

Modelled: IRR and ISR with priorities, EOI, ICR with physical and logical destinations and
shorthands, INIT and start-up IPIs, NMIs, self IPI, messages of devices, LVT entries for the timer
and LINT0 (ExtINT from the 8259s). Not modelled: xAPIC's MMIO page, one-shot and periodic timer
modes, LINT1, errors, the blocking of NMIs until IRET.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.machine.devices.state import StatefulDevice

MSR_APIC_BASE: Final = 0x1B
MSR_TSC_DEADLINE: Final = 0x6E0
MSRS: Final = frozenset({MSR_APIC_BASE, MSR_TSC_DEADLINE, *range(0x800, 0x840)})
"""What `read` and `write` take."""

_BASE: Final = 0xFEE00000 | 1 << 11 | 1 << 10
_BOOT_CPU: Final = 1 << 8
_ID, _VERSION, _TPR, _PPR, _EOI, _LDR, _SVR = 0x802, 0x803, 0x808, 0x80A, 0x80B, 0x80D, 0x80F
_ISR, _TMR, _IRR = range(0x810, 0x818), range(0x818, 0x820), range(0x820, 0x828)
_ICR, _LVT_TIMER, _LVT_LINT0, _SELF_IPI = 0x830, 0x832, 0x835, 0x83F
_LVTS: Final = range(0x832, 0x838)
_SIX_LVTS: Final = 0x50014
_MASKED: Final = 1 << 16
_MODE: Final = 7 << 8
_EXTINT: Final = 7 << 8
_DEADLINE: Final = 2 << 17
_TIMER_MODE: Final = 3 << 17
_LOGICAL: Final = 1 << 11
_FIXED, _LOWEST, _NMI, _INIT, _STARTUP = 0, 1, 4, 5, 6
_SELF, _ALL, _OTHERS = 1, 2, 3
_EVERYONE: Final = 0xFFFFFFFF
_FIRST_VECTOR: Final = 16
"""A lower one is an error of the sender's (Intel SDM volume 3, 11.5.3)."""


class ApicState(msgspec.Struct, kw_only=True):
    """One local APIC. `requested` and `in_service` are the vectors in IRR and ISR; `deadline` is in
    TSC ticks, 0 for none; `is_waiting` after INIT, `start` the vector of a start-up IPI that came
    then; `has_nmi` while an NMI waits."""

    registers: dict[int, int]
    requested: set[int] = set()
    in_service: set[int] = set()
    deadline: int = 0
    is_waiting: bool = False
    start: int | None = None
    has_nmi: bool = False


def _word(vectors: set[int], word: int) -> int:
    """A 32-bit register of IRR or ISR."""
    return sum(1 << (vector & 31) for vector in vectors if vector >> 5 == word)


class ApicsState(msgspec.Struct):
    """All of them, by APIC ID; `sent` counts IPIs."""

    apics: list[ApicState]
    sent: int = 0


class LocalApics(StatefulDevice[ApicsState]):
    """The local APICs of `count` CPUs; the APIC ID of a CPU is its number. `now` is the TSC,
    `on_request` is called when an interrupt is sent."""

    def __init__(self, count: int, now: Callable[[], int], on_request: Callable[[], None]) -> None:
        apics = [
            ApicState(registers=dict.fromkeys(_LVTS, _MASKED) | {_SVR: 0xFF}, is_waiting=index > 0)
            for index in range(count)
        ]
        apics[0].registers[_LVT_LINT0] = _EXTINT
        super().__init__(ApicsState(apics))
        self._now = now
        self._on_request = on_request

    # Registers --------------------------------------------------------------------------------

    def read(self, index: int, msr: int) -> int:
        """RDMSR of one of `MSRS` on CPU `index`."""
        apic = self.state.apics[index]
        if msr == MSR_APIC_BASE:
            return _BASE | (0 if index else _BOOT_CPU)
        if msr == MSR_TSC_DEADLINE:
            return apic.deadline
        if msr in _ISR:
            return _word(apic.in_service, msr - _ISR.start)
        if msr in _IRR:
            return _word(apic.requested, msr - _IRR.start)
        fixed = {_ID: index, _VERSION: _SIX_LVTS, _LDR: (index >> 4) << 16 | 1 << (index & 15)}
        if msr == _PPR:
            return self._priority(apic) << 4
        return fixed.get(msr, apic.registers.get(msr, 0))

    def write(self, index: int, msr: int, value: int) -> None:
        """WRMSR of one of `MSRS` on CPU `index`."""
        apic = self.state.apics[index]
        if msr == MSR_TSC_DEADLINE:
            is_armed = apic.registers[_LVT_TIMER] & _TIMER_MODE == _DEADLINE
            apic.deadline = value if is_armed else 0
        elif msr == _EOI:
            apic.in_service.discard(max(apic.in_service, default=0))
        elif msr == _SELF_IPI:
            self.request(index, value & 0xFF)
        elif msr == _ICR:
            self._send(index, value)
        elif msr != MSR_APIC_BASE:
            apic.registers[msr] = value
            if msr == _LVT_TIMER and value & _TIMER_MODE != _DEADLINE:
                apic.deadline = 0

    # Interrupts -------------------------------------------------------------------------------

    def request(self, index: int, vector: int) -> None:
        """An interrupt for CPU `index`."""
        self.state.apics[index].requested.add(vector)
        self._on_request()

    def _send(self, sender: int, command: int) -> None:
        destination, kind, vector = command >> 32, command >> 8 & 7, command & 0xFF
        self.state.sent += 1
        for index in self._targets(sender, command >> 18 & 3, destination, command & _LOGICAL):
            apic = self.state.apics[index]
            if kind in {_FIXED, _LOWEST}:
                self.request(index, vector)
            elif kind == _NMI and not apic.is_waiting:
                apic.has_nmi = True
                self._on_request()
            elif kind == _INIT and command & 1 << 14:
                apic.is_waiting, apic.start = True, None
                apic.has_nmi = False
                apic.requested.clear()
                apic.in_service.clear()
                apic.deadline = 0
            elif kind == _STARTUP and apic.is_waiting:
                apic.start = vector
                self._on_request()

    def message(self, address: int, data: int) -> tuple[int, ...]:
        """A device's message (Intel SDM volume 3, 11.11): destination in bits 19 to 12 of the
        address, redirection hint in bit 3, logical destination in bit 2; vector and delivery mode
        in the data. The CPUs that have the interrupt now; none for modes other than fixed and
        lowest priority."""
        kind, vector = data >> 8 & 7, data & 0xFF
        if kind not in {_FIXED, _LOWEST} or vector < _FIRST_VECTOR:
            return ()
        is_logical = bool(address & 1 << 2)
        targets = self._targets(0, 0, address >> 12 & 0xFF, is_logical)
        if kind == _LOWEST or address & 1 << 3:
            targets = targets[:1]
        for index in targets:
            self.state.apics[index].requested.add(vector)
        return tuple(targets)

    def _targets(self, sender: int, shorthand: int, destination: int, is_logical: int) -> list[int]:
        everyone = range(len(self.state.apics))
        if shorthand == _SELF:
            return [sender]
        if shorthand:
            return [index for index in everyone if shorthand == _ALL or index != sender]
        if destination == _EVERYONE:
            return list(everyone)
        if not is_logical:
            return [index for index in everyone if index == destination]
        cluster, members = destination >> 16, destination & 0xFFFF
        return [i for i in everyone if i >> 4 == cluster and members >> (i & 15) & 1]

    @staticmethod
    def _priority(apic: ApicState) -> int:
        """The class that interrupts must exceed."""
        task = apic.registers.get(_TPR, 0) >> 4 & 0xF
        return max(task, max(apic.in_service, default=0) >> 4)

    def deadline(self, index: int) -> int | None:
        """When the timer of CPU `index` fires, None for never."""
        return self.state.apics[index].deadline or None

    def pending(self, index: int) -> int | None:
        """The vector that CPU `index` would take now."""
        apic = self.state.apics[index]
        if apic.deadline and self._now() >= apic.deadline:
            apic.deadline = 0
            timer = apic.registers[_LVT_TIMER]
            if not timer & _MASKED:
                apic.requested.add(timer & 0xFF)
        vector = max(apic.requested, default=0)
        return vector if vector >> 4 > self._priority(apic) else None

    def acknowledge(self, index: int, vector: int) -> None:
        """CPU `index` takes `vector`."""
        apic = self.state.apics[index]
        apic.requested.discard(vector)
        apic.in_service.add(vector)

    def takes_extint(self, index: int) -> bool:
        """Whether CPU `index` takes the interrupts of the 8259s, through LINT0."""
        entry = self.state.apics[index].registers[_LVT_LINT0]
        return entry & (_MODE | _MASKED) == _EXTINT

    def take_start(self, index: int) -> int | None:
        """The vector of a start-up IPI that CPU `index` waits for: its code is at vector << 12."""
        apic = self.state.apics[index]
        start = apic.start
        if start is not None:
            apic.start, apic.is_waiting = None, False
        return start
