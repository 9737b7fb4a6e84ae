# SPDX-License-Identifier: GPL-2.0-or-later
"""An NVMe 1.4 controller with one namespace of 512-byte blocks and INTx or MSI-X (fact U17).

Commands complete inside of the doorbell write that submits them. Data pointers are PRPs (NVM
Express base specification 1.4, section 4.3). Offered: one I/O queue pair, eight with MSI-X, no
volatile write cache, no firmware, no namespace management.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE
from guestemu.machine.devices.disk import SECTOR, Disk
from guestemu.machine.devices.pci import PciFunction, PciIds

_CAP, _VS, _INTMS, _INTMC, _CC, _CSTS, _AQA, _ASQ, _ACQ = (
    *(0x00, 0x08, 0x0C, 0x10, 0x14),
    *(0x1C, 0x24, 0x28, 0x30),
)
_DOORBELLS: Final = 0x1000
_CAP_VALUE: Final = 63 | 1 << 16 | 10 << 24 | 1 << 37  # 64 entries, contiguous, 5 s, NVM
_VERSION: Final = 0x10400
_ENABLE: Final = 1
_SHUTDOWN: Final = 3 << 14
_READY: Final = 1
_SHUTDOWN_COMPLETE: Final = 2 << 2

_COMMAND: Final = 64
_COMPLETION: Final = 16
_PRP: Final = 8

_SUCCESS: Final = 0
_INVALID_OPCODE: Final = 0x001
_INVALID_FIELD: Final = 0x002
_LBA_RANGE: Final = 0x080
_INVALID_QUEUE: Final = 0x101
_INVALID_VECTOR: Final = 0x108
_MANY_QUEUES: Final = 8

_DELETE_SQ, _CREATE_SQ, _GET_LOG, _DELETE_CQ, _CREATE_CQ, _IDENTIFY = 0, 1, 2, 4, 5, 6
_ABORT, _SET_FEATURES, _GET_FEATURES, _ASYNC_EVENT = 8, 9, 10, 12
_NUMBER_OF_QUEUES: Final = 7
_FLUSH, _WRITE, _READ = 0, 1, 2


class SubmissionQueue(msgspec.Struct):
    """`entries` of 64 bytes at `base`; completions go to queue `completion`."""

    base: int
    entries: int
    completion: int
    head: int = 0


class CompletionQueue(msgspec.Struct, kw_only=True):
    """`entries` of 16 bytes at `base`; `vector` is that of MSI-X."""

    base: int
    entries: int
    interrupts: bool
    vector: int = 0
    head: int = 0
    tail: int = 0
    phase: int = 1


class NvmeState(msgspec.Struct, kw_only=True):
    """Registers, queues by number, and the medium."""

    disk: Disk
    cc: int = 0
    aqa: int = 0
    asq: int = 0
    acq: int = 0
    masked: int = 0
    submission: dict[int, SubmissionQueue] = msgspec.field(default_factory=dict)
    completion: dict[int, CompletionQueue] = msgspec.field(default_factory=dict)


class NvmeController(PciFunction[NvmeState]):
    """See the module's docstring. Appears as /dev/nvme0n1."""

    IDS = PciIds(0x1B36, 0x0010, 0x010802, 2, (0x1AF4, 0x1100))
    NODE = "/dev/nvme0n1"
    DOORBELLS = range(_DOORBELLS, 0x2000, 8)  # of submission queues

    def first_state(self) -> NvmeState:
        """See `PciFunction`."""
        return NvmeState(disk=Disk("nvme block"))

    @property
    def vectors(self) -> int:
        """See `PciFunction`: one for the admin queue, one for each I/O queue."""
        return 1 + _MANY_QUEUES

    @property
    def disk(self) -> Disk:
        """The namespace's content."""
        return self.state.disk

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`."""
        return self.disk.has(data, offset)

    # Registers --------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """See `PciFunction`."""
        state = self.state
        status = _READY if state.cc & _ENABLE else 0
        status |= _SHUTDOWN_COMPLETE if state.cc & _SHUTDOWN else 0
        registers = {
            _CAP: _CAP_VALUE,
            _VS: _VERSION,
            _INTMS: state.masked,
            _INTMC: state.masked,
            _CC: state.cc,
            _CSTS: status,
            _AQA: state.aqa,
            _ASQ: state.asq,
            _ACQ: state.acq,
        }
        value = registers.get(offset)
        if value is None:
            value = registers.get(offset - 4, 0) >> 32 if offset & 4 else 0
        return value & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """See `PciFunction`."""
        if offset >= _DOORBELLS:
            number, is_completion = divmod((offset - _DOORBELLS) // 4, 2)
            if is_completion:
                self._advance(number, value)
            else:
                self._submit(number, value)
        elif offset == _CC:
            self._configure(value)
        elif offset == _INTMS:
            self.state.masked |= value
            self._drive_line()
        elif offset == _INTMC:
            self.state.masked &= ~value
            self._drive_line()
        elif offset == _AQA:
            self.state.aqa = value
        elif offset in {_ASQ, _ASQ + 4}:
            self.state.asq = _part(self.state.asq, offset - _ASQ, size, value)
        elif offset in {_ACQ, _ACQ + 4}:
            self.state.acq = _part(self.state.acq, offset - _ACQ, size, value)

    def _configure(self, value: int) -> None:
        state = self.state
        was_enabled, state.cc = state.cc & _ENABLE, value
        if value & _ENABLE and not was_enabled:
            sizes = state.aqa
            state.submission[0] = SubmissionQueue(state.asq, (sizes & 0xFFF) + 1, 0)
            state.completion[0] = CompletionQueue(
                base=state.acq, entries=(sizes >> 16 & 0xFFF) + 1, interrupts=True
            )
        elif not value & _ENABLE:
            state.submission.clear()
            state.completion.clear()
            self._drive_line()

    def _drive_line(self) -> None:
        is_waiting = any(
            queue.interrupts and queue.head != queue.tail
            for queue in self.state.completion.values()
        )
        self.line.set(is_waiting and not self.state.masked & 1 and not self.uses_messages)

    def _advance(self, number: int, head: int) -> None:
        queue = self.state.completion.get(number)
        if queue is not None and head < queue.entries:
            queue.head = head
            self._drive_line()

    # Commands ---------------------------------------------------------------------------------

    def _submit(self, number: int, tail: int) -> None:
        queue = self.state.submission.get(number)
        if queue is None or tail >= queue.entries:
            return
        has_completed = False
        while queue.head != tail:
            at = queue.base + _COMMAND * queue.head
            command = self.dma.read(at, _COMMAND, f"submission queue {number}")
            queue.head = (queue.head + 1) % queue.entries
            answer = self._admin(command) if number == 0 else self._io(command)
            if answer is not None:
                self._complete(queue, number, command, *answer)
                has_completed = True
        self._drive_line()
        target = self.state.completion.get(queue.completion)
        if has_completed and self.uses_messages and target is not None and target.interrupts:
            self.signal(target.vector)

    def _complete(
        self, queue: SubmissionQueue, number: int, command: bytes, value: int, status: int
    ) -> None:
        target = self.state.completion.get(queue.completion)
        if target is None:
            return
        identifier = int.from_bytes(command[2:4], "little")
        entry = struct.pack("<II", value, 0) + struct.pack(
            "<HHHH", queue.head, number, identifier, status << 1 | target.phase
        )
        at = target.base + _COMPLETION * target.tail
        self.dma.write(at, entry, f"completion queue {queue.completion}")
        target.tail += 1
        if target.tail == target.entries:
            target.tail, target.phase = 0, target.phase ^ 1

    def pieces(self, command: bytes, size: int) -> Iterator[tuple[int, int]]:
        """Address and length of each part of the data that PRP1 and PRP2 name."""
        first, second = struct.unpack_from("<QQ", command, 24)
        length = min(size, PAGE_SIZE - (first & PAGE_MASK))
        yield first, length
        size -= length
        if 0 < size <= PAGE_SIZE:
            yield second, size
            return
        while size > 0:
            room = (PAGE_SIZE - (second & PAGE_MASK)) // _PRP
            for index in range(room):
                entry = self.dma.read(second + _PRP * index, _PRP, "PRP list")
                address = int.from_bytes(entry, "little")
                if index == room - 1 and size > PAGE_SIZE:
                    second = address
                    break
                yield address, min(size, PAGE_SIZE)
                size -= PAGE_SIZE
                if size <= 0:
                    return

    def _give(self, command: bytes, data: bytes) -> None:
        for address, length in self.pieces(command, len(data)):
            self.dma.write(address, data[:length], "data", is_payload=True)
            data = data[length:]

    def _take(self, command: bytes, size: int) -> bytes:
        return b"".join(
            self.dma.read(address, length, "data", is_payload=True)
            for address, length in self.pieces(command, size)
        )

    def _admin(self, command: bytes) -> tuple[int, int] | None:
        """Result and status; None for a command that never completes."""
        opcode = command[0]
        if opcode == _ASYNC_EVENT:
            return None
        (first,) = struct.unpack_from("<I", command, 40)
        if opcode == _IDENTIFY:
            self._give(command, self._identify(first & 0xFF))
        elif opcode == _GET_LOG:
            self._give(command, bytes(min((first >> 16) + 1, PAGE_SIZE // 4) * 4))
        elif opcode in {_CREATE_CQ, _CREATE_SQ}:
            return 0, self._create(opcode, command)
        elif opcode in {_DELETE_CQ, _DELETE_SQ}:
            is_there = (
                self.state.submission.pop(first & 0xFFFF, None)
                if opcode == _DELETE_SQ
                else self.state.completion.pop(first & 0xFFFF, None)
            )
            return 0, _INVALID_QUEUE if is_there is None else _SUCCESS
        elif opcode in {_SET_FEATURES, _GET_FEATURES}:
            is_known = first & 0xFF == _NUMBER_OF_QUEUES
            last = _MANY_QUEUES - 1 if self.msix is not None else 0
            return last << 16 | last, _SUCCESS if is_known else _INVALID_FIELD
        elif opcode != _ABORT:
            return 0, _INVALID_OPCODE
        return 0, _SUCCESS

    def _create(self, opcode: int, command: bytes) -> int:
        base, _, identity, flags = struct.unpack_from("<QQII", command, 24)
        number, entries = identity & 0xFFFF, (identity >> 16) + 1
        if number == 0:
            return _INVALID_QUEUE
        if opcode == _CREATE_CQ:
            vector = flags >> 16
            if self.uses_messages and vector >= self.vectors:
                return _INVALID_VECTOR
            self.state.completion[number] = CompletionQueue(
                base=base, entries=entries, interrupts=bool(flags & 2), vector=vector
            )
        else:
            self.state.submission[number] = SubmissionQueue(base, entries, flags >> 16)
        return _SUCCESS

    def _identify(self, what: int) -> bytes:
        page = bytearray(PAGE_SIZE)
        if what == 0:  # the namespace: size, capacity, use; one format of 2^9 bytes
            struct.pack_into("<3Q", page, 0, *[self.state.disk.sectors] * 3)
            page[130] = 9
        elif what == 1:  # the controller
            struct.pack_into("<HH", page, 0, self.IDS.vendor, self.IDS.subsystem[0])
            page[4:24] = b"0001".ljust(20)
            page[24:64] = b"guestemu NVMe".ljust(40)
            page[64:72] = b"1".ljust(8)
            page[77] = 5  # no more than 32 pages in a command
            struct.pack_into("<I", page, 80, _VERSION)
            page[512], page[513] = 0x66, 0x44
            struct.pack_into("<I", page, 516, 1)
            name = b"nqn.2014-08.org.nvmexpress:guestemu"
            page[768 : 768 + len(name)] = name
        elif what == 2:  # active namespaces
            struct.pack_into("<I", page, 0, 1)
        elif what == 3:  # the namespace's EUI-64
            page[0:2] = bytes((1, 8))
            page[4:12] = bytes(range(1, 9))
        return bytes(page)

    def _io(self, command: bytes) -> tuple[int, int]:
        opcode = command[0]
        if opcode == _FLUSH:
            return 0, _SUCCESS
        first, last = struct.unpack_from("<QH", command, 40)
        count = last + 1
        if opcode not in {_READ, _WRITE}:
            return 0, _INVALID_OPCODE
        if not self.disk.holds(first, count):
            return 0, _LBA_RANGE
        if opcode == _READ:
            self._give(command, self.disk.read(first, count))
        else:
            self.disk.write(first, self._take(command, count * SECTOR))
        return 0, _SUCCESS


def _part(old: int, offset: int, size: int, value: int) -> int:
    """A 64-bit register after a store of 4 or 8 bytes into it."""
    if size == 8:
        return value
    shift = 8 * offset
    return old & ~(0xFFFFFFFF << shift) | (value & 0xFFFFFFFF) << shift
