# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio 1.1 over PCI with INTx or MSI-X and split virtqueues (fact U16).

One BAR: common configuration at 0, notifications at 0x1000, ISR at 0x2000, the device's own
configuration at 0x3000. Offers VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM; without the second
a driver must not use DMA mappings, and Linux refuses the device in a guest with encrypted memory
(drivers/virtio/virtio.c, virtio_features_ok).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec

from guestemu.machine.devices.disk import Disk
from guestemu.machine.devices.pci import PciFunction
from guestemu.machine.devices.pic import Line
from guestemu.machine.devices.port import DmaPort

VERSION_1: Final = 1 << 32
ACCESS_PLATFORM: Final = 1 << 33
VENDOR: Final = 0x1AF4
QUEUE_SIZE: Final = 64

_NOTIFY, _ISR, _OWN, _END = 0x1000, 0x2000, 0x3000, 0x4000
_VENDOR_CAPABILITY: Final = 9
_NEXT, _DEVICE_WRITES, _INDIRECT = 1, 2, 4
_NO_INTERRUPT: Final = 1
_NO_VECTOR: Final = 0xFFFF
_MASK32: Final = 0xFFFFFFFF


class QueueBuffer(NamedTuple):
    """One descriptor: address, length in bytes, who may write."""

    gpa: int
    size: int
    is_writable: bool


class SplitQueue(msgspec.Struct, kw_only=True):
    """A virtqueue as the driver set it up, and how far the device has come."""

    size: int = QUEUE_SIZE
    is_enabled: int = 0
    descriptors: int = 0
    driver: int = 0
    device: int = 0
    seen: int = 0
    used: int = 0
    vector: int = _NO_VECTOR


class VirtioState(msgspec.Struct, kw_only=True):
    """The transport's registers (`vector` is that of changes of configuration), the queues, the
    medium of a block device, what waits for a buffer of the driver's, and how many lines a console
    has sent."""

    queues: list[SplitQueue]
    disk: Disk | None = None
    pending: list[bytes] = msgspec.field(default_factory=list)
    lines: int = 0
    status: int = 0
    isr: int = 0
    vector: int = _NO_VECTOR
    select: int = 0
    feature_select: int = 0
    driver_select: int = 0
    accepted: int = 0


class VirtioFunction(PciFunction[VirtioState]):
    """The transport; a device derives from it and answers `serve`.

    `FEATURES` are the device's own feature bits, `QUEUES` the number of its queues, `MORE_QUEUES`
    and `MORE_FEATURES` what is added with MSI-X; `own_config` are the bytes of its configuration.
    """

    DOORBELLS = range(_NOTIFY, _ISR)
    FEATURES: int = 0
    QUEUES: int = 1
    MORE_FEATURES: int = 0
    MORE_QUEUES: int = 0

    def __init__(self, bar: int, line: Line, dma: DmaPort) -> None:
        super().__init__(bar, line, dma)
        for kind, offset, size in ((1, 0, 0x38), (3, _ISR, 1), (4, _OWN, 0x100)):
            body = struct.pack("<BBB3xII", 16, kind, 0, offset, size)
            self.add_capability(_VENDOR_CAPABILITY, body)
        body = struct.pack("<BBB3x", 20, 2, 0) + struct.pack("<III", _NOTIFY, _ISR - _NOTIFY, 4)
        self.add_capability(_VENDOR_CAPABILITY, body)
        self.checkpoint()

    def first_state(self) -> VirtioState:
        """See `PciFunction`."""
        return self._state(self.medium())

    def _state(self, disk: Disk | None) -> VirtioState:
        return VirtioState(queues=[SplitQueue() for _ in range(self.queues)], disk=disk)

    @property
    def queues(self) -> int:
        """How many there are."""
        return self.QUEUES + (0 if self.msix is None else self.MORE_QUEUES)

    @property
    def vectors(self) -> int:
        """See `PciFunction`: one for each queue and one for changes of configuration."""
        return 1 + self.QUEUES + self.MORE_QUEUES

    def medium(self) -> Disk | None:
        """What a block device holds at power-on."""
        return None

    @property
    def own_config(self) -> bytes:
        """The device-specific configuration."""
        return b""

    def serve(self, number: int, chain: list[QueueBuffer]) -> int:
        """Carries out the request `chain` of queue `number`; the bytes written into it."""
        raise NotImplementedError

    def fill(self, chain: list[QueueBuffer], data: bytes, part: str) -> int:
        """Writes the payload `data` into the writable buffers of `chain`, as far as they reach; the
        bytes written. `part` names what it is, as in `DmaPort.write`."""
        written = 0
        for buffer in chain:
            piece = data[written : written + buffer.size]
            if buffer.is_writable and piece:
                self.dma.write(buffer.gpa, piece, part, is_payload=True)
                written += len(piece)
        return written

    def is_ready(self, number: int) -> bool:
        """Whether the device takes the next buffer of queue `number` now."""
        return True

    def kick(self, number: int) -> None:
        """The device has something for queue `number`."""
        self._notify(number)

    def _reset(self) -> None:
        self.state = self._state(self.state.disk)
        self.line.set(False)

    # Registers --------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """See `PciFunction`."""
        state = self.state
        if offset >= _OWN:
            part = self.own_config[offset - _OWN : offset - _OWN + size]
            return int.from_bytes(part.ljust(size, b"\0"), "little")
        if offset == _ISR:
            value, state.isr = state.isr, 0
            self.line.set(False)
            return value
        return self._common().get(offset, 0) & (1 << 8 * size) - 1

    def _common(self) -> dict[int, int]:
        """The fields of struct virtio_pci_common_cfg, by offset."""
        state = self.state
        offered = VERSION_1 | ACCESS_PLATFORM | self.FEATURES
        offered |= 0 if self.msix is None else self.MORE_FEATURES
        fields = {
            0x00: state.feature_select,
            0x04: offered >> 32 * state.feature_select if state.feature_select < 2 else 0,
            0x08: state.driver_select,
            0x0C: state.accepted >> 32 * min(state.driver_select, 2),
            0x10: state.vector,
            0x12: len(state.queues),
            0x14: state.status,
            0x16: state.select,
            0x1A: _NO_VECTOR,
        }
        if state.select < len(state.queues):
            queue = state.queues[state.select]
            fields |= {0x18: queue.size, 0x1A: queue.vector}
            fields |= {0x1C: queue.is_enabled, 0x1E: state.select}
            for at, address in (
                (0x20, queue.descriptors),
                (0x28, queue.driver),
                (0x30, queue.device),
            ):
                fields |= {at: address & _MASK32, at + 4: address >> 32}
        fields[0x04] &= _MASK32
        fields[0x0C] &= _MASK32
        return fields

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """See `PciFunction`."""
        state = self.state
        if _NOTIFY <= offset < _ISR:
            self._notify((offset - _NOTIFY) // 4)
        elif offset == 0x00:
            state.feature_select = value
        elif offset == 0x08:
            state.driver_select = value
        elif offset == 0x0C:
            shift = 32 * min(state.driver_select, 2)
            state.accepted = state.accepted & ~(_MASK32 << shift) | (value & _MASK32) << shift
        elif offset == 0x10:
            state.vector = self._vector(value)
        elif offset == 0x14:
            if value == 0:
                self._reset()
            else:
                state.status = value
        elif offset == 0x16:
            state.select = value
        elif state.select < len(state.queues):
            self._write_queue(state.queues[state.select], offset, size, value)

    def _vector(self, value: int) -> int:
        """The vector that a driver wrote, as it reads back (virtio 1.1, 4.1.5.1.2.1)."""
        return value if self.msix is not None and value < self.vectors else _NO_VECTOR

    def _write_queue(self, queue: SplitQueue, offset: int, size: int, value: int) -> None:
        if offset == 0x18:
            queue.size = min(max(value, 1), QUEUE_SIZE)
        elif offset == 0x1A:
            queue.vector = self._vector(value)
        elif offset == 0x1C:
            queue.is_enabled = value
        elif 0x20 <= offset < 0x38:
            name = ("descriptors", "driver", "device")[(offset - 0x20) // 8]
            shift = 8 * (offset & 4)
            mask = (1 << 8 * size) - 1 << shift
            setattr(queue, name, getattr(queue, name) & ~mask | value << shift & mask)

    # Queues -----------------------------------------------------------------------------------

    def _notify(self, number: int) -> None:
        if number >= len(self.state.queues) or not self.state.queues[number].is_enabled:
            return
        queue = self.state.queues[number]
        has_served = False
        for _ in range(queue.size):
            head = self._next(number, queue) if self.is_ready(number) else None
            if head is None:
                break
            written = self.serve(number, self._chain(number, queue, head))
            self._push(number, queue, head, written)
            has_served = True
        if has_served and not self._word(queue.driver, f"queue {number} flags") & _NO_INTERRUPT:
            self._interrupt(queue)

    def _interrupt(self, queue: SplitQueue) -> None:
        """Buffers were used (virtio 1.1, 4.1.5.3: with MSI-X the ISR does not change)."""
        if self.uses_messages:
            self.signal(queue.vector)
        else:
            self.state.isr |= 1
            self.line.set(True)

    def _word(self, gpa: int, part: str) -> int:
        return int.from_bytes(self.dma.read(gpa, 2, part), "little")

    def _next(self, number: int, queue: SplitQueue) -> int | None:
        """The head of the next request that the driver made available."""
        if self._word(queue.driver + 2, f"queue {number} available") == queue.seen:
            return None
        at = queue.driver + 4 + 2 * (queue.seen % queue.size)
        queue.seen = queue.seen + 1 & 0xFFFF
        return self._word(at, f"queue {number} available")

    def _chain(self, number: int, queue: SplitQueue, head: int) -> list[QueueBuffer]:
        """The buffers of a request; a chain longer than its table is cut."""
        table, entries, index = queue.descriptors, queue.size, head
        chain: list[QueueBuffer] = []
        while len(chain) < entries and index < entries:
            raw = self.dma.read(table + 16 * index, 16, f"queue {number} descriptor")
            gpa, size, flags, following = struct.unpack("<QIHH", raw)
            if flags & _INDIRECT:
                table, entries, index = gpa, size // 16, 0
                continue
            chain.append(QueueBuffer(gpa, size, bool(flags & _DEVICE_WRITES)))
            if not flags & _NEXT:
                break
            index = following
        return chain

    def _push(self, number: int, queue: SplitQueue, head: int, written: int) -> None:
        part = f"queue {number} used"
        at = queue.device + 4 + 8 * (queue.used % queue.size)
        self.dma.write(at, struct.pack("<II", head, written), part)
        queue.used = queue.used + 1 & 0xFFFF
        self.dma.write(queue.device + 2, queue.used.to_bytes(2, "little"), part)
