# SPDX-License-Identifier: GPL-2.0-or-later
"""The two cascaded 8259A interrupt controllers of a PC (facts U3).

Modelled: ICW1 to ICW4, OCW1 to OCW3 with specific and plain EOI, automatic EOI, level-triggered
lines for PCI and the edge of the timer. Not modelled: rotation, special mask mode, polling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from guestemu.machine.devices.state import StatefulDevice

PORTS: Final = (0x20, 0x21, 0xA0, 0xA1)
_CASCADE: Final = 2
_LINES: Final = 8

_ICW1: Final = 0x10
_ICW1_NEEDS_ICW4: Final = 0x01
_ICW4_AUTO_EOI: Final = 0x02
_OCW3: Final = 0x08
_OCW2_EOI: Final = 0x20
_OCW2_SPECIFIC: Final = 0x40


class ChipState(msgspec.Struct, kw_only=True):
    """One 8259A. `awaited` is the number of the initialization word that comes next, 0 for none."""

    base: int
    mask: int = 0xFF
    requested: int = 0
    in_service: int = 0
    level: int = 0
    awaited: int = 0
    needs_icw4: bool = False
    auto_eoi: bool = False
    reads_in_service: bool = False


class PicState(msgspec.Struct):
    """Master and slave."""

    chips: list[ChipState]


class Line(Protocol):
    """What a device signals an interrupt by; `irq` is the input of the controllers."""

    irq: int

    def set(self, is_high: bool) -> None:
        """Drives the line."""


class InterruptLine:
    """One level-triggered input of the controllers."""

    def __init__(self, controller: InterruptControllers, irq: int) -> None:
        self.irq = irq
        self._controller = controller

    def set(self, is_high: bool) -> None:
        """Drives the line."""
        self._controller.set_line(self.irq, is_high)


class InterruptControllers(StatefulDevice[PicState]):
    """Both chips. `on_request` is called when a device raises a line."""

    def __init__(self, on_request: Callable[[], None]) -> None:
        super().__init__(PicState([ChipState(base=0x30), ChipState(base=0x38)]))
        self._on_request = on_request

    def line(self, irq: int) -> InterruptLine:
        """The input of IRQ `irq`, 1 to 15."""
        return InterruptLine(self, irq)

    def set_line(self, irq: int, is_high: bool) -> None:
        """Drives the level-triggered input `irq`."""
        chip, bit = self.state.chips[irq // _LINES], 1 << irq % _LINES
        if is_high:
            chip.requested |= bit
            chip.level |= bit
            self._on_request()
        else:
            chip.requested &= ~bit
            chip.level &= ~bit

    def pulse(self, irq: int) -> None:
        """An edge on input `irq`."""
        self.state.chips[irq // _LINES].requested |= 1 << irq % _LINES

    @staticmethod
    def _first(chip: ChipState) -> int | None:
        """The unmasked request that no input of the same or higher priority in service holds up."""
        ready = chip.requested & ~chip.mask
        for number in range(_LINES):
            if chip.in_service >> number & 1:
                return None
            if ready >> number & 1:
                return number
        return None

    def pending(self) -> int | None:
        """The IRQ that INTR stands for now, None for no request."""
        master, slave = self.state.chips
        second = self._first(slave)
        cascade = 1 << _CASCADE
        master.requested = master.requested & ~cascade | (0 if second is None else cascade)
        first = self._first(master)
        if first != _CASCADE:
            return first
        return None if second is None else _LINES + second

    def acknowledge(self, irq: int) -> int:
        """The CPU's INTA cycle for `irq`, which `pending` returned: its vector."""
        master, slave = self.state.chips
        if irq >= _LINES:
            self._serve(master, _CASCADE)
            self._serve(slave, irq - _LINES)
        else:
            self._serve(master, irq)
        return self.state.chips[irq // _LINES].base + irq % _LINES

    @staticmethod
    def _serve(chip: ChipState, number: int) -> None:
        bit = 1 << number
        if not chip.level & bit:
            chip.requested &= ~bit
        if not chip.auto_eoi:
            chip.in_service |= bit

    def write(self, port: int, value: int) -> None:
        """OUT to one of `PORTS`."""
        chip = self.state.chips[0 if port < PORTS[2] else 1]
        if port & 1:
            self._write_data(chip, value)
        elif value & _ICW1:
            chip.awaited, chip.mask, chip.in_service = 2, 0, 0
            chip.requested = chip.level
            chip.needs_icw4 = bool(value & _ICW1_NEEDS_ICW4)
            chip.auto_eoi = False
        elif value & _OCW3:
            if value & 2:
                chip.reads_in_service = bool(value & 1)
        elif value & _OCW2_EOI:
            highest = chip.in_service & -chip.in_service
            chip.in_service &= ~(1 << (value & 7) if value & _OCW2_SPECIFIC else highest)

    @staticmethod
    def _write_data(chip: ChipState, value: int) -> None:
        if chip.awaited == 2:
            chip.base, chip.awaited = value & 0xF8, 3
        elif chip.awaited == 3:
            chip.awaited = 4 if chip.needs_icw4 else 0
        elif chip.awaited == 4:
            chip.auto_eoi, chip.awaited = bool(value & _ICW4_AUTO_EOI), 0
        else:
            chip.mask = value

    def read(self, port: int) -> int:
        """IN from one of `PORTS`."""
        chip = self.state.chips[0 if port < PORTS[2] else 1]
        if port & 1:
            return chip.mask
        return chip.in_service if chip.reads_in_service else chip.requested
