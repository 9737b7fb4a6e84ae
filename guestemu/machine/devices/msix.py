# SPDX-License-Identifier: GPL-2.0-or-later
"""MSI-X: a function interrupts by storing a message, and masks each of its vectors by itself (PCI
Local Bus Specification 3.0, sections 6.8.2 and 6.8.3).

Table and pending bits lie in a BAR of their own. A message to an address that is not the local
APICs' is a store of the device to memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from guestemu.events.devices import DeviceMessage
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.devices.state import StatefulDevice

CAPABILITY: Final = 0x11
BAR: Final = 4
"""Index of the BAR with table and pending bits."""

SIZE: Final = 0x1000
"""Bytes of that BAR."""

PENDING_AT: Final = 0x800
"""Where the pending bits lie in it; the table lies at 0."""

ENABLE: Final = 1 << 15
FUNCTION_MASK: Final = 1 << 14
_ENTRY: Final = 16
_MASKED: Final = 1
_LOCAL_APICS: Final = 0xFEE
"""Bits 31 to 20 of a message's address (Intel SDM volume 3, 11.11.1)."""


class MsixEntry(msgspec.Struct):
    """A table entry: message address and data, and bit 0 of its vector control."""

    address: int = 0
    data: int = 0
    is_masked: bool = True


class MsixState(msgspec.Struct):
    """The table; the entries whose pending bit is set; enable and function mask as they stand in
    message control."""

    entries: list[MsixEntry]
    pending: set[int] = set()
    control: int = 0


class Messages(Protocol):
    """What a function sends its messages by."""

    def send(self, entry: int, address: int, data: int) -> None:
        """Stores `data`, 32 bits, at `address`: the message of table entry `entry`."""


class MessagePort:
    """The way of a device's messages to the local APICs: `deliver` gets address and data and
    returns the CPUs that have the interrupt now, `notify` hears of each message behind that."""

    def __init__(
        self,
        dma: DmaPort,
        notify: Callable[[DeviceMessage], None],
        deliver: Callable[[int, int], tuple[int, ...]],
    ) -> None:
        self._dma = dma
        self._notify = notify
        self._deliver = deliver

    def send(self, entry: int, address: int, data: int) -> None:
        """See `Messages`."""
        if address >> 20 != _LOCAL_APICS:
            self._dma.write(address, data.to_bytes(4, "little"), "message")
            return
        cpus = self._deliver(address, data)
        device = self._dma.device
        self._notify(
            DeviceMessage(device=device, entry=entry, address=address, data=data, cpus=cpus)
        )


class MsixTable(StatefulDevice[MsixState]):
    """Table and pending bits of a function with `count` vectors, which sends by `port`."""

    def __init__(self, count: int, port: Messages) -> None:
        super().__init__(MsixState([MsixEntry() for _ in range(count)]))
        self.port = port

    @property
    def control(self) -> int:
        """Message control as it reads."""
        return self.state.control | len(self.state.entries) - 1

    @property
    def capability(self) -> bytes:
        """Body of the capability: message control, where table and pending bits lie."""
        return struct.pack("<HII", self.control, BAR, PENDING_AT | BAR)

    @property
    def is_enabled(self) -> bool:
        """Whether the function interrupts by messages; it must not use INTx then (6.8.3.3)."""
        return bool(self.state.control & ENABLE)

    def configure(self, control: int) -> None:
        """Message control was written: enable and function mask count, the rest is read-only."""
        self.state.control = control & (ENABLE | FUNCTION_MASK)
        self._send_pending()

    def signal(self, entry: int) -> None:
        """The function has an interrupt for `entry`: a message, or a pending bit while it is masked
        (6.8.3.5). Nothing for an entry that the table does not have."""
        if entry < len(self.state.entries):
            self.state.pending.add(entry)
            self._send_pending()

    def forge(self, entry: int, port: Messages) -> None:
        """Sends the message of `entry` by `port` without a cause, whether it is masked or not; none
        that does not go to the local APICs, as one that no driver has set up."""
        found = self.state.entries[entry]
        if found.address >> 20 == _LOCAL_APICS:
            port.send(entry, found.address, found.data)

    def _send_pending(self) -> None:
        state = self.state
        if not self.is_enabled or state.control & FUNCTION_MASK:
            return
        for number in sorted(state.pending):
            entry = state.entries[number]
            if not entry.is_masked:
                state.pending.discard(number)
                self.port.send(number, entry.address, entry.data)

    def read(self, offset: int, size: int) -> int:
        """A load of 4 or 8 bytes from the BAR."""
        low = self._word(offset & ~3)
        return low if size <= 4 else low | self._word(offset + 4 & ~3) << 32

    def _word(self, offset: int) -> int:
        state = self.state
        if offset >= PENDING_AT:
            first = (offset - PENDING_AT) * 8
            return sum(
                1 << (number - first) for number in state.pending if 0 <= number - first < 32
            )
        number, field = divmod(offset, _ENTRY)
        if number >= len(state.entries):
            return 0
        entry = state.entries[number]
        fields = (entry.address & 0xFFFFFFFF, entry.address >> 32, entry.data, entry.is_masked)
        return int(fields[field // 4])

    def write(self, offset: int, size: int, value: int) -> None:
        """A store of 4 or 8 bytes into the BAR. Pending bits are read-only."""
        for at in range(0, size, 4):
            self._write_word(offset + at, value >> 8 * at & 0xFFFFFFFF)
        self._send_pending()

    def _write_word(self, offset: int, value: int) -> None:
        number, field = divmod(offset, _ENTRY)
        if number >= len(self.state.entries):
            return
        entry = self.state.entries[number]
        if field == 0:
            entry.address = entry.address >> 32 << 32 | value
        elif field == 4:
            entry.address = entry.address & 0xFFFFFFFF | value << 32
        elif field == 8:
            entry.data = value
        else:
            entry.is_masked = bool(value & _MASKED)
