# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that belongs to a hostile host: what it stores, returns and signals can be changed.

`Hostility` stands between a `PciFunction` and the guest: it takes the place of its DMA port and its
interrupt line and sees each load from its registers and its configuration space. Which answers are
changed, and how, the owner decides (`Tamper`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa
from guestemu.events.devices import DeviceAccess
from guestemu.machine.devices.msix import Messages
from guestemu.machine.devices.pci import PciFunction
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.memory import GuestRam

STORE: Final = "store"
REGISTER: Final = "register"
CONFIG: Final = "config"
_CHUNK: Final = 16


class Tamper(Protocol):
    """Decides what becomes of a hostile device's answers."""

    def change(self, kind: str, data: bytes, what: str) -> bytes | None:
        """The answer `data` of `kind` (`STORE`, `REGISTER`, `CONFIG`) as the guest gets it; None
        where a store is lost. `what` names the place."""

    def after_store(self) -> bool:
        """Whether an interrupt without a cause follows the store that just happened."""

    def loses_interrupt(self) -> bool:
        """Whether the device's own interrupt, which rises now, is lost."""


class HostilePort(DmaPort):
    """A DMA port whose stores may be changed.

    `stale` counts bytes that were not zero in payload buffers that the driver handed out to be
    written: what the device could have read there; `foreign` those of them that the device had not
    stored itself before.
    """

    def __init__(
        self,
        ram: GuestRam,
        device: str,
        notify: Callable[[DeviceAccess], None],
        hostility: Hostility,
    ) -> None:
        super().__init__(ram, device, notify)
        self._hostility = hostility
        self.pages: dict[int, None] = {}
        """Frames that the device touched, in the order of the first access."""

        self.payload = bytearray()
        """Payload as the device stored it."""

        self.stale = self.foreign = 0
        self._before = b""

    def begin(self) -> None:
        """Forgets what the device did since `keep`."""
        self.pages.clear()
        self.payload[:] = self._before
        self.stale = self.foreign = 0

    def keep(self) -> None:
        """What the device stored so far stays known after `begin`."""
        self._before = bytes(self.payload)

    def count_foreign(self, data: bytes) -> int:
        """How many bytes of `data` are neither zero nor part of what the device stored."""
        return sum(
            len(chunk) - chunk.count(0)
            for at in range(0, len(data), _CHUNK)
            if any(chunk := data[at : at + _CHUNK]) and chunk not in self.payload
        )

    def read(self, gpa: int, size: int, part: str, is_payload: bool = False) -> bytes:
        """See `DmaPort`."""
        self._touch(gpa, size)
        return super().read(gpa, size, part, is_payload)

    def write(self, gpa: int, data: bytes, part: str, is_payload: bool = False) -> None:
        """See `DmaPort`."""
        self._touch(gpa, len(data))
        if is_payload and self._is_memory(gpa, len(data)):
            before = self._ram.read(Gpa(gpa), len(data), private=False)
            if any(before):
                self.stale += len(before) - before.count(0)
                self.foreign += self.count_foreign(before)
        changed = self._hostility.tamper.change(STORE, data, part)
        if changed is not None:
            if is_payload:
                self.payload += changed
            super().write(gpa, changed, part, is_payload)
        self._hostility.stored()

    def poke(self, page: int, offset: int, data: bytes) -> bool:
        """Stores `data` into page number `page` of those touched; whether there is one. A page
        that is private by now is out of the device's reach."""
        if page >= len(self.pages):
            return False
        gpa = (list(self.pages)[page] << PAGE_SHIFT) + min(offset, PAGE_SIZE - len(data))
        self._ram.write(Gpa(gpa), data, private=False)
        return True

    def _touch(self, gpa: int, size: int) -> None:
        if size and self._is_memory(gpa, size):
            for gfn in range(gpa >> PAGE_SHIFT, (gpa + size - 1 >> PAGE_SHIFT) + 1):
                self.pages.setdefault(gfn)


class _HostileLine:
    """An interrupt line whose rise may be lost."""

    def __init__(self, hostility: Hostility) -> None:
        self.irq = hostility.honest_line.irq
        self._hostility = hostility

    def set(self, is_high: bool) -> None:
        """See `InterruptLine`."""
        hostility = self._hostility
        if not (is_high and hostility.tamper.loses_interrupt()):
            hostility.honest_line.set(is_high)


class _HostileMessages:
    """Messages that may be lost."""

    def __init__(self, hostility: Hostility, port: Messages) -> None:
        self._hostility = hostility
        self.honest = port

    def send(self, entry: int, address: int, data: int) -> None:
        """See `Messages`."""
        if not self._hostility.tamper.loses_interrupt():
            self.honest.send(entry, address, data)


class Hostility:
    """Makes `device` hostile from `begin` to `end`. `spurious` raises an interrupt without a
    cause; with MSI-X it is a message of its table, masked or not: at the device's first store that
    of entry 0, at the next one of entry 1, and so on, around the table."""

    def __init__(
        self,
        device: PciFunction[msgspec.Struct],
        ram: GuestRam,
        notify: Callable[[DeviceAccess], None],
        spurious: Callable[[int], None],
    ) -> None:
        self.tamper: Tamper
        self._device = device
        self._honest_dma = device.dma
        self.honest_line = device.line
        self._spurious = spurious
        self.port = HostilePort(ram, device.dma.device, notify, self)
        self._line = _HostileLine(self)
        self._messages = None if device.msix is None else _HostileMessages(self, device.msix.port)
        self._stores = 0

    def begin(self, tamper: Tamper) -> None:
        """From now on `tamper` decides."""
        self.tamper = tamper
        self.port.begin()
        device = self._device
        device.dma, device.line = self.port, self._line
        device.distort = self._distort
        self._stores = 0
        if device.msix is not None and self._messages is not None:
            device.msix.port = self._messages

    def end(self) -> None:
        """The device is honest again."""
        device = self._device
        device.dma, device.line = self._honest_dma, self.honest_line
        device.distort = None
        if device.msix is not None and self._messages is not None:
            device.msix.port = self._messages.honest

    def stored(self) -> None:
        """The device has stored something."""
        number, self._stores = self._stores, self._stores + 1
        if not self.tamper.after_store():
            return
        device = self._device
        if device.msix is not None and device.uses_messages and self._messages is not None:
            device.msix.forge(number % device.vectors, self._messages.honest)
        else:
            self._spurious(self.honest_line.irq)

    def _distort(self, is_config: bool, offset: int, size: int, value: int) -> int:
        kind = CONFIG if is_config else REGISTER
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        changed = self.tamper.change(kind, data, f"{kind} {offset:#x}")
        return int.from_bytes(data if changed is None else changed, "little")
