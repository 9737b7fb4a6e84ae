# SPDX-License-Identifier: GPL-2.0-or-later
"""The MC146818 clock at ports 0x70 and 0x71, standing at one moment.

Register A never has "update in progress": with all ones there, as from an absent chip, the kernel's
cmos driver waits a second for each read (fact U10). A fixed date keeps runs equal.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.machine.devices.state import StatefulDevice

PORTS: Final = (0x70, 0x71)
_REGISTERS: Final = {
    0x00: 0x00,  # seconds, BCD
    0x02: 0x00,  # minutes
    0x04: 0x12,  # hours, 24-hour mode
    0x06: 0x05,  # day of the week
    0x07: 0x01,  # day of the month
    0x08: 0x01,  # month
    0x09: 0x26,  # year
    0x0A: 0x26,  # divider 32768 Hz, rate 1024 Hz, no update in progress
    0x0B: 0x02,  # 24-hour mode, BCD
    0x0C: 0x00,
    0x0D: 0x80,  # valid RAM and time
    0x32: 0x20,  # century
}


class RtcState(msgspec.Struct):
    """`index` selects a register; `ram` holds what was written."""

    index: int = 0
    ram: dict[int, int] = msgspec.field(default_factory=dict)


class RealTimeClock(StatefulDevice[RtcState]):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__(RtcState())

    def write(self, port: int, value: int) -> None:
        """OUT to one of `PORTS`."""
        if port == PORTS[0]:
            self.state.index = value & 0x7F
        elif self.state.index not in {0x0A, 0x0C, 0x0D}:
            self.state.ram[self.state.index] = value

    def read(self, port: int) -> int:
        """IN from one of `PORTS`."""
        if port == PORTS[0]:
            return 0xFF
        index = self.state.index
        return self.state.ram.get(index, _REGISTERS.get(index, 0))
