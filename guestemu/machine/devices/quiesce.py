# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that is stopped in the middle of a request, at a chosen point.

`Quiescence` stands between a `PciFunction` and the guest: it takes the place of its DMA port and
its interrupt line and sees the driver's stores to its registers. What the device has not done at
the point is kept as a record (`HeldWork`), which travels with the device's state: doorbells that it
has not acted on, stores that have left it and not reached memory, the level of its interrupt. A
real device is quiesced in the same way: what is in flight is either drained or part of the state
that moves (QEMU's virtio-blk sends its requests, hw/block/virtio-blk.c, virtio_blk_save_device).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.events.devices import DeviceAccess
from guestemu.machine.devices.msix import Messages
from guestemu.machine.devices.pci import PciFunction
from guestemu.machine.devices.pic import Line
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.memory import GuestRam

SUBMITTED: Final = "submitted"
MOVED: Final = "moved"
COMPLETED: Final = "completed"
RAISED: Final = "raised"
POINTS: Final[dict[str, str]] = {
    SUBMITTED: "the driver has rung the doorbell, the device has done nothing",
    MOVED: "the device has read or stored the data, its completion has not reached memory",
    COMPLETED: "the completion is in memory, the interrupt has not risen",
    RAISED: "the interrupt has risen",
}
"""Names and sentences, in the order of time."""


class HeldStore(msgspec.Struct, frozen=True):
    """A store of the device's on its way to memory; see `DmaPort.write`."""

    gpa: int
    data: bytes
    part: str
    is_payload: bool


class HeldWork(msgspec.Struct):
    """What the device has not done yet: `doorbells` are stores of the driver (offset, size, value),
    `stores` its own, `level` is where its interrupt line goes, None for where it is, `messages` are
    those of MSI-X (entry, address, data)."""

    doorbells: list[tuple[int, int, int]] = msgspec.field(default_factory=list)
    stores: list[HeldStore] = msgspec.field(default_factory=list)
    level: bool | None = None
    messages: list[tuple[int, int, int]] = msgspec.field(default_factory=list)

    def carry_out(self, device: PciFunction[msgspec.Struct]) -> None:
        """Has `device` go on from the point; its state is that of the device that was stopped."""
        for store in self.stores:
            device.dma.write(store.gpa, store.data, store.part, store.is_payload)
        if self.level is not None:
            device.line.set(self.level)
        for message in self.messages:
            if device.msix is not None:
                device.msix.port.send(*message)
        for offset, size, value in self.doorbells:
            device.mmio_write(offset, size, value)


class _HeldPort(DmaPort):
    """A DMA port that tells its owner of each access and keeps back what the owner holds."""

    def __init__(
        self,
        ram: GuestRam,
        device: str,
        notify: Callable[[DeviceAccess], None],
        owner: Quiescence,
    ) -> None:
        super().__init__(ram, device, notify)
        self._owner = owner

    def read(self, gpa: int, size: int, part: str, is_payload: bool = False) -> bytes:
        """See `DmaPort`."""
        self._owner.has_moved |= is_payload
        return super().read(gpa, size, part, is_payload)

    def write(self, gpa: int, data: bytes, part: str, is_payload: bool = False) -> None:
        """See `DmaPort`."""
        if self._owner.holds_store(is_payload):
            self._owner.work.stores.append(HeldStore(gpa, bytes(data), part, is_payload))
            return
        super().write(gpa, data, part, is_payload)


class _HeldLine:
    """An interrupt line whose change may be kept back."""

    def __init__(self, owner: Quiescence, line: Line) -> None:
        self.irq = line.irq
        self._owner = owner
        self._line = line

    def set(self, is_high: bool) -> None:
        """See `InterruptLine`."""
        if self._owner.holds_line(is_high):
            self._owner.work.level = is_high
        else:
            self._line.set(is_high)


class _HeldMessages:
    """Messages that may be kept back."""

    def __init__(self, owner: Quiescence, port: Messages) -> None:
        self._owner = owner
        self._port = port

    def send(self, entry: int, address: int, data: int) -> None:
        """See `Messages`."""
        if self._owner.holds_line(True):
            self._owner.work.messages.append((entry, address, data))
        else:
            self._port.send(entry, address, data)


class Quiescence:
    """Stops `device` where it next gets to `point`, and calls `on_stop` there once. From then on
    nothing of the device happens until `end`; `work` is what it has not done, `is_stopped` tells
    whether it got to the point."""

    def __init__(
        self,
        device: PciFunction[msgspec.Struct],
        point: str,
        ram: GuestRam,
        notify: Callable[[DeviceAccess], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.work = HeldWork()
        self.is_stopped = False
        self.has_moved = False
        """Whether the device has touched payload."""

        self._device = device
        self._point = point
        self._on_stop = on_stop
        self._dma, self._line = device.dma, device.line
        device.dma = _HeldPort(ram, device.dma.device, notify, self)
        device.line = _HeldLine(self, device.line)
        self._messages = None if device.msix is None else device.msix.port
        if device.msix is not None:
            device.msix.port = _HeldMessages(self, device.msix.port)
        device.detain = self._holds_register

    def end(self) -> None:
        """The device has its port and its line back. What it has not done stays undone until
        `HeldWork.carry_out`."""
        self._device.dma, self._device.line = self._dma, self._line
        self._device.detain = None
        if self._device.msix is not None and self._messages is not None:
            self._device.msix.port = self._messages

    def _stop(self) -> None:
        if not self.is_stopped:
            self.is_stopped = True
            self._on_stop()

    def _holds_register(self, offset: int, size: int, value: int) -> bool:
        """Whether a store of the driver's is kept back."""
        if self._point == SUBMITTED and offset in self._device.DOORBELLS:
            self._stop()
        if self.is_stopped:
            self.work.doorbells.append((offset, size, value))
        return self.is_stopped

    def holds_store(self, is_payload: bool) -> bool:
        """Whether a store of the device's to memory is kept back."""
        if is_payload:
            self.has_moved = True
        elif self._point == MOVED and self.has_moved:
            self._stop()
        return self.is_stopped

    def holds_line(self, is_high: bool) -> bool:
        """Whether a change of the interrupt line, or a message, is kept back."""
        if not self.is_stopped and is_high and self.has_moved:
            if self._point == COMPLETED:
                self._stop()
            elif self._point == RAISED:
                self._stop()
                return False
        return self.is_stopped
