# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMware vmxnet3 network device of revision 1, with INTx or MSI-X and up to eight queue pairs.

The layouts are those of Linux 6.12 (drivers/net/vmxnet3/vmxnet3_defs.h), what the commands do is
read off the same driver (vmxnet3_drv.c) and off QEMU's device (hw/net/vmxnet3.c). All but the
buffers of frames is coherent memory: the area that driver and device share, queue descriptors, five
rings, and a ring of data into which the driver copies the first 128 bytes of each frame. No offload
is offered, the second receive ring is not used, and nothing is counted. An answer comes back by the
receive queue of the number of the transmit queue. The other end is far_end.py.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.machine.devices import far_end
from guestemu.machine.devices.pci import PciFunction, PciIds

_VENDOR: Final = 0x15AD
_PAGE: Final = 0x1000
_MASKS, _TRANSMIT, _TRANSMIT_END = range(0, 8 * 25, 8), 0x600, 0x640
_REVISION, _UPT_VERSION, _SHARED_LOW, _SHARED_HIGH, _COMMAND, _MAC_LOW, _MAC_HIGH, _CAUSE = (
    _PAGE + offset for offset in (0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38)
)

_ACTIVATE, _QUIESCE, _RESET = 0xCAFE0000, 0xCAFE0001, 0xCAFE0002
_GET_LINK, _GET_MAC_LOW, _GET_MAC_HIGH, _GET_INTERRUPTS = (
    *(0xF00D0002, 0xF00D0003, 0xF00D0004),
    0xF00D0008,
)
_LINK_UP: Final = 10_000 << 16 | 1
_AUTO, _INTX = 0, 1  # masked by the device when it is sent or acknowledged
_MAGIC: Final = 3133079265
_FAILED: Final = 1

_QUEUES_AT: Final = 40  # Vmxnet3_DriverShared.devRead.misc.queueDescPA
_COUNTS_AT: Final = 62  # .devRead.misc.numTxQueues, .numRxQueues
_AUTO_MASK_AT: Final = 80  # .devRead.intrConf.autoMask
_QUEUE: Final = 256
_CONF_AT: Final = 16
_SIZES_AT: Final = 56
_VECTOR_AT: Final = 72  # conf.intrIdx
_MAX_QUEUES: Final = 8
_MAX_VECTORS: Final = 25

_DESCRIPTOR: Final = 16
_DATA: Final = 128
_LENGTH: Final = 0x3FFF
_TX_GENERATION: Final = 1 << 14
_TX_END: Final = 1 << 12
_GENERATION: Final = 1 << 31
_RX_BODY: Final = 1 << 14
_RX_WHOLE: Final = 3 << 14  # first and last buffer of a frame
_RX_QUEUE: Final = 16  # Vmxnet3_RxCompDesc.rqID
_RX_KIND: Final = 3 << 24
_MAX_PARTS: Final = 16
_MAX_ENTRIES: Final = 4096
_MAX_PENDING: Final = 16


class CellRing(msgspec.Struct):
    """`entries` descriptors of 16 bytes from `base` on; the device is at `at`, and a descriptor is
    the other side's whose generation bit is `generation`."""

    base: int = 0
    entries: int = 0
    at: int = 0
    generation: int = 1

    @property
    def gpa(self) -> int:
        """Where the next descriptor lies."""
        return self.base + _DESCRIPTOR * self.at

    def advance(self) -> None:
        """On to the next descriptor."""
        self.at += 1
        if self.at >= self.entries:
            self.at, self.generation = 0, self.generation ^ 1


class SendQueue(msgspec.Struct):
    """Descriptors, completions, start and end of the ring of data, its interrupt."""

    ring: CellRing
    done: CellRing
    data: tuple[int, int]
    vector: int


class ReceiveQueue(msgspec.Struct):
    """Descriptors, completions, its interrupt, answers that wait for a buffer."""

    ring: CellRing
    done: CellRing
    vector: int
    pending: list[bytes] = msgspec.field(default_factory=list)


class Interrupt(msgspec.Struct):
    """One interrupt of the device, with the mask of its own that is beside MSI-X's."""

    is_pending: bool = False
    is_masked: bool = True


class Vmxnet3State(msgspec.Struct, kw_only=True):
    """Registers, queues and interrupts by number."""

    shared: int = 0
    answer: int = 0
    mac: int = int.from_bytes(far_end.OWN, "little")
    masks_itself: bool = False
    sends: list[SendQueue] = msgspec.field(default_factory=list)
    receives: list[ReceiveQueue] = msgspec.field(default_factory=list)
    interrupts: list[Interrupt] = msgspec.field(
        default_factory=lambda: [Interrupt() for _ in range(_MAX_VECTORS)]
    )


class Vmxnet3(PciFunction[Vmxnet3State]):
    """See the module's docstring. Appears as eth0; the driver is the module vmxnet3."""

    IDS = PciIds(_VENDOR, 0x07B0, 0x020000, 1, (_VENDOR, 0x07B0))
    BARS = (_PAGE, _PAGE)
    SIZE = 2 * _PAGE
    MODULES = ("vmxnet3",)
    NODE = "eth0"
    OPENING = 8_000_000
    BOUNCE_SLOTS = 2048  # 1,023 buffers of 1,522 bytes and 511 pages in each receive queue
    DOORBELLS = range(_TRANSMIT, _TRANSMIT_END, 8)

    @property
    def vectors(self) -> int:
        """See `PciFunction`."""
        return _MAX_VECTORS

    def first_state(self) -> Vmxnet3State:
        """See `PciFunction`."""
        return Vmxnet3State()

    def read_command(self, size: int, offset: int) -> str:
        """See `PciFunction`: a frame of `size` bytes, and its answer."""
        return far_end.frame_command(self.NODE, size)

    def write_command(self, size: int, offset: int) -> str:
        """See `PciFunction`: a frame, as to read."""
        return self.read_command(size, offset)

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`: `data` is the answer to a frame of PID 1."""
        return far_end.is_answer(data)

    # Registers --------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """See `PciFunction`."""
        state = self.state
        if offset == _CAUSE:
            return self._acknowledge()
        registers = {
            _REVISION: 1,
            _UPT_VERSION: 1,
            _COMMAND: state.answer,
            _MAC_LOW: state.mac & 0xFFFFFFFF,
            _MAC_HIGH: state.mac >> 32,
        }
        return registers.get(offset, 0)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """See `PciFunction`."""
        state = self.state
        if offset in _MASKS:
            number = offset // 8
            state.interrupts[number].is_masked = bool(value & 1)
            self._send_interrupt(number)
        elif offset in self.DOORBELLS:
            self._send((offset - _TRANSMIT) // 8)
        elif offset == _SHARED_LOW:
            state.shared = state.shared >> 32 << 32 | value
        elif offset == _SHARED_HIGH:
            state.shared = state.shared & 0xFFFFFFFF | value << 32
        elif offset == _MAC_LOW:
            state.mac = state.mac >> 32 << 32 | value
        elif offset == _MAC_HIGH:
            state.mac = state.mac & 0xFFFFFFFF | (value & 0xFFFF) << 32
        elif offset == _COMMAND:
            state.answer = self._carry_out(value)

    def _carry_out(self, command: int) -> int:
        """What the command register reads afterwards."""
        if command == _ACTIVATE:
            return self._activate()
        if command in {_QUIESCE, _RESET}:
            self.state = Vmxnet3State(shared=self.state.shared, mac=self.state.mac)
            self._drive_line()
        own = int.from_bytes(far_end.OWN, "little")
        answers = {
            _GET_LINK: _LINK_UP,
            _GET_MAC_LOW: own & 0xFFFFFFFF,
            _GET_MAC_HIGH: own >> 32,
            _GET_INTERRUPTS: _INTX if self.msix is None else _AUTO,
        }
        return answers.get(command, 0)

    def _activate(self) -> int:
        state, dma = self.state, self.dma
        shared = dma.read(state.shared, _AUTO_MASK_AT + 1, "shared area")
        sends, receives = shared[_COUNTS_AT : _COUNTS_AT + 2]
        is_right = int.from_bytes(shared[:4], "little") == _MAGIC
        if not is_right or not {sends, receives} <= set(range(1, _MAX_QUEUES + 1)):
            return _FAILED
        at = int.from_bytes(shared[_QUEUES_AT : _QUEUES_AT + 8], "little")
        state.masks_itself = bool(shared[_AUTO_MASK_AT])
        state.sends.clear()
        state.receives.clear()
        for number in range(sends + receives):
            part = "transmit queue" if number < sends else "receive queue"
            queue = dma.read(at + _QUEUE * number, _QUEUE, part)
            bases, sizes = self._rings(queue)
            ring, done = CellRing(bases[0], sizes[0]), CellRing(bases[2], sizes[2])
            vector = min(queue[_VECTOR_AT], _MAX_VECTORS - 1)
            if number < sends:
                data = bases[1], bases[1] + _DATA * sizes[1]
                state.sends.append(SendQueue(ring, done, data, vector))
            else:
                state.receives.append(ReceiveQueue(ring, done, vector))
        return 0

    @staticmethod
    def _rings(queue: bytes) -> tuple[tuple[int, ...], list[int]]:
        """Addresses and numbers of entries of a queue's three rings."""
        sizes = struct.unpack_from("<3I", queue, _SIZES_AT)
        return struct.unpack_from("<3Q", queue, _CONF_AT), [
            min(size, _MAX_ENTRIES) for size in sizes
        ]

    # Interrupt --------------------------------------------------------------------------------

    def _drive_line(self) -> None:
        is_high = any(one.is_pending and not one.is_masked for one in self.state.interrupts)
        self.line.set(is_high and not self.uses_messages)

    def _send_interrupt(self, number: int) -> None:
        """What waits as interrupt `number` goes out, if it is not masked."""
        interrupt = self.state.interrupts[number]
        if self.uses_messages and interrupt.is_pending and not interrupt.is_masked:
            interrupt.is_pending = False
            interrupt.is_masked = self.state.masks_itself
            self.signal(number)
        self._drive_line()

    def _raise_interrupt(self, number: int) -> None:
        self.state.interrupts[number].is_pending = True
        self._send_interrupt(number)

    def _acknowledge(self) -> int:
        state, cause = self.state, 0
        for interrupt in state.interrupts:
            if interrupt.is_pending and not interrupt.is_masked:
                interrupt.is_pending = False
                interrupt.is_masked = state.masks_itself
                cause = 1
        self._drive_line()
        return cause

    # Frames -----------------------------------------------------------------------------------

    def _send(self, number: int) -> None:
        """Takes all frames that are complete in the ring of a queue."""
        state = self.state
        if number >= len(state.sends):
            return
        queue = state.sends[number]
        back_at = number % len(state.receives)
        behind = state.receives[back_at]
        has_sent = False
        for _ in range(queue.ring.entries):
            sent = self._take(queue)
            if sent is None:
                break
            has_sent = True
            back = far_end.answer(sent)
            if back is not None and len(behind.pending) < _MAX_PENDING:
                behind.pending.append(back)
        vectors = {queue.vector} if has_sent else set()
        if self._receive(back_at):
            vectors.add(behind.vector)
        for vector in sorted(vectors):
            self._raise_interrupt(vector)

    def _take(self, queue: SendQueue) -> bytes | None:
        """The next frame; None where the driver has given no more."""
        ring, frame = queue.ring, b""
        for _ in range(_MAX_PARTS):
            gpa, length, flags = self._cell(ring, "transmit ring")
            if bool(length & _TX_GENERATION) != bool(ring.generation):
                return None
            size = length & _LENGTH or _LENGTH + 1
            start, end = queue.data
            is_copied = start <= gpa < end
            part = "data ring" if is_copied else "frame"
            frame += self.dma.read(gpa, min(size, far_end.LONGEST), part, not is_copied)
            index = ring.at
            ring.advance()
            if flags & _TX_END:
                self._complete(queue.done, (index, 0, 0, 0), "transmit completions")
                return frame[: far_end.LONGEST]
        return None

    def _receive(self, number: int) -> bool:
        """Stores what waits for receive queue `number` into buffers of the driver's; whether there
        was any."""
        queue, has_received = self.state.receives[number], False
        while queue.pending:
            gpa, length, _ = self._cell(queue.ring, "receive ring")
            is_ours = bool(length & _GENERATION) == bool(queue.ring.generation)
            if not is_ours or length & _RX_BODY:
                break
            frame = queue.pending.pop(0)[: length & _LENGTH]
            self.dma.write(gpa, frame, "frame", is_payload=True)
            first = queue.ring.at | _RX_WHOLE | number << _RX_QUEUE
            words = (first, 0, len(frame), _RX_KIND)
            queue.ring.advance()
            self._complete(queue.done, words, "receive completions")
            has_received = True
        return has_received

    def _cell(self, ring: CellRing, part: str) -> tuple[int, int, int]:
        """Address, length with flags, further flags of the next descriptor."""
        raw = self.dma.read(ring.gpa, _DESCRIPTOR, part)
        gpa, length, flags = struct.unpack("<QII", raw)
        return gpa, length, flags

    def _complete(self, ring: CellRing, words: tuple[int, int, int, int], part: str) -> None:
        first, second, third, fourth = words
        fourth |= _GENERATION if ring.generation else 0
        self.dma.write(ring.gpa, struct.pack("<4I", first, second, third, fourth), part)
        ring.advance()
