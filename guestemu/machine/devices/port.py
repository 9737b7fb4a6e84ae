# SPDX-License-Identifier: GPL-2.0-or-later
"""How a device reaches guest memory.

A device has no memory key: it reads and writes the shared view, whatever the guest mapped. An
address with the C-bit, or beyond RAM, reaches nothing: loads return all ones and stores are lost,
as behind an IOMMU that blocks the address.
"""

from __future__ import annotations

from collections.abc import Callable

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.events.devices import DeviceAccess
from guestemu.machine.memory import GuestRam


class DmaPort:
    """The DMA accesses of one device. `notify` hears of each access before it happens."""

    def __init__(self, ram: GuestRam, device: str, notify: Callable[[DeviceAccess], None]) -> None:
        self.device = device
        self._ram = ram
        self._notify = notify

    def _is_memory(self, gpa: int, size: int) -> bool:
        return gpa >= 0 and gpa + size <= self._ram.frames * PAGE_SIZE

    def read(self, gpa: int, size: int, part: str, is_payload: bool = False) -> bytes:
        """`size` bytes at `gpa` of the shared view; all ones where there is no memory."""
        self._tell(False, gpa, size, part, is_payload)
        if not self._is_memory(gpa, size):
            return b"\xff" * size
        return self._ram.read(Gpa(gpa), size, private=False)

    def write(self, gpa: int, data: bytes, part: str, is_payload: bool = False) -> None:
        """Stores `data` at `gpa` in the shared view; lost where there is no memory."""
        self._tell(True, gpa, len(data), part, is_payload)
        if self._is_memory(gpa, len(data)):
            self._ram.write(Gpa(gpa), data, private=False)

    def _tell(self, is_write: bool, gpa: int, size: int, part: str, is_payload: bool) -> None:
        self._notify(
            DeviceAccess(
                device=self.device,
                is_write=is_write,
                gpa=gpa,
                size=size,
                part=part,
                is_payload=is_payload,
            )
        )
