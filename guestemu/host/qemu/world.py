# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that migrates, for programs that drive its parts: status sync, list, stream, SEV state.

The machine has RAM below and above a PCI hole, a hole of seven pages inside the lower part (so that
a section begins at no multiple of 64 pages), KVM slots smaller than sections, and device RAM. The
guest's hypercalls go into a record by gfn, of which `private` and `regions` are two views; QEMU's
parts, with the defects of one patch set, take it from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final
from zlib import crc32

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK, Gfn, RamAddr
from guestemu.abi.errno import EINVAL, EIO, ENOTTY
from guestemu.abi.errors import InputError
from guestemu.host.kvm.findings import ResourceFinding
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.host.kvm.region_list import cut_regions, merge_region, take_bits
from guestemu.host.qemu.interfaces import Region, SendStart, SevPacket, TransportError
from guestemu.host.qemu.memory_map import MemoryMap, PcLayout, pc_machine
from guestemu.host.qemu.patch_sets import PatchSet, QemuDefect
from guestemu.host.qemu.sev_send import OutgoingSev
from guestemu.host.qemu.status import BitmapStatus, ListStatus, PageStatus
from guestemu.host.qemu.stream_format import BitmapRange, Format, SharedRegions, StatusBitmap
from guestemu.host.qemu.stream_reader import StreamLimits, StreamReader
from guestemu.host.qemu.stream_writer import StreamWriter
from guestemu.host.qemu.wire import StreamError
from guestemu.host.qemu.world_records import KINDS, plain_numbers, record_bytes
from guestemu.program.ops import OpKind

BELOW: Final = 320
ABOVE: Final = 192
ABOVE_GFN: Final = 0x1000
DEVICE_PAGES: Final = 16
DEVICE_GFN: Final = 0x800
HOLE: Final = (163, 170)
SLOT_PAGES: Final = 128
WIDE_SECTION: Final = 15
"""This section number stands for addresses that no RAM has, from gfn 2^32 on."""
WIDE_GFN: Final = 1 << 32
SEND_PAGE, SEND_COMPLETED, SEND_FAILED, SEND_CANCELLED = range(4)
_STEPS: Final = 4

_BLOCK: Final = "pc.ram"


@cache
def small_machine() -> MemoryMap:
    """The machine of the module's docstring: one for all worlds, none of which changes it."""
    layout = PcLayout(
        ram=(BELOW + ABOVE) << PAGE_SHIFT,
        hole_start=BELOW << PAGE_SHIFT,
        above_base=ABOVE_GFN << PAGE_SHIFT,
        vga=DEVICE_PAGES << PAGE_SHIFT,
        vga_base=DEVICE_GFN << PAGE_SHIFT,
        max_slot_pages=SLOT_PAGES,
    )
    machine = pc_machine(layout)
    machine.unmap(HOLE[0] << PAGE_SHIFT, (HOLE[1] - HOLE[0]) << PAGE_SHIFT)
    return machine


def plain_arguments(kind: OpKind, arguments: tuple[int, ...]) -> tuple[int, ...]:
    """Those that `QemuWorld` does the same for (see `Host.plain`)."""
    match kind:
        case OpKind.QEMU_STATUS:
            section, *rest = arguments
            if section != WIDE_SECTION:
                section %= len(small_machine().sections)
            return (section, *rest) if rest[1] else (0,) * len(arguments)
        case OpKind.QEMU_RESIZE:
            return (arguments[0] % len(small_machine().blocks),)
        case OpKind.QEMU_SEND:
            return (arguments[0] % _STEPS,)
        case OpKind.QEMU_RECORD:
            return plain_numbers(*arguments)
    return arguments


@cache
def _limits(top_gfn: int) -> StreamLimits:
    """What a stream may name: the machine's blocks, and frames below `top_gfn`."""
    return StreamLimits(
        {name: block.size for name, block in small_machine().blocks.items()}, top_gfn
    )


class SendingFirmware:
    """The firmware's guest as far as a failed migration shows it: running, sending or sent."""

    def __init__(self) -> None:
        self.state = "running"

    def _move(self, operation: str, before: str, after: str) -> None:
        if self.state != before:
            raise TransportError(operation, -EIO, 2)
        self.state = after

    def send_start(self) -> SendStart:
        """See `interfaces.SevSource`."""
        self._move("SEND_START", "running", "sending")
        return SendStart(0, b"\0" * 16, b"\0" * 16)

    def send_update_data(self, _address: RamAddr) -> SevPacket:
        """See `interfaces.SevSource`."""
        self._move("SEND_UPDATE_DATA", "sending", "sending")
        return SevPacket(b"\0" * 52, b"\0" * 16)

    def send_finish(self) -> None:
        """See `interfaces.SevSource`."""
        self._move("SEND_FINISH", "sending", "sent")

    def send_cancel(self) -> None:
        """See `interfaces.SevSource`."""
        self._move("SEND_CANCEL", "sending", "running")


class _Bytes:
    """A channel that keeps what was written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """See `interfaces.Channel`."""
        self.data += data


class QemuWorld:
    """See the module's docstring. `defects` are those that the patch set `version` has here;
    `page_bits` the target page size of the stream reader."""

    def __init__(
        self, version: PatchSet, defects: frozenset[QemuDefect], page_bits: int = PAGE_SHIFT
    ) -> None:
        self.version = version
        self.defects = defects
        self.machine = small_machine()
        self.regions: list[Region] = []
        self.received: list[Region] = []
        """The destination's list, or the shared runs of its bitmap."""
        kind = ListStatus if self.has_list else BitmapStatus
        self.status: PageStatus = kind(self.machine, version, defects, self)
        self.firmware = SendingFirmware()
        self.outgoing = OutgoingSev(self.firmware, defects)
        limits = _limits(self.machine.top_gfn)
        is_repaired = QemuDefect.UNCHECKED_WIRE not in defects
        self.reader = StreamReader(
            version.wire, limits, is_repaired=is_repaired, page_bits=page_bits
        )
        self.is_touched = False
        self.is_stream_broken = False
        self.is_completed = False
        self._last_field = ""
        self._last_kind = 0

    @property
    def has_list(self) -> bool:
        """Whether the patch set keeps a list of shared regions and no bitmap."""
        return self.version.wire is Format.LIST

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """What the defects did to QEMU."""
        return self.outgoing.findings + self.reader.findings

    @property
    def state(self) -> int:
        """A small number for coverage feedback."""
        return (
            min(len(self.regions), 7)
            | min(len(self.received), 3) << 3
            | ("running", "sending", "sent").index(self.firmware.state) << 5
            | self.is_stream_broken << 7
            | (crc32(self._last_field.encode()) & 0xFF) << 8
            | self._last_kind << 16
        )

    # KVM's record -----------------------------------------------------------------------------

    def private_bits(self, start: int, pages: int) -> bitarray:
        """The record as bits, 1 = private."""
        bits = bitarray(pages, endian="little")
        bits.setall(True)
        for first, last in self.regions:
            low, high = max(first - start, 0), min(last - start, pages)
            if low < high:
                bits[low:high] = False
        return bits

    def get_page_enc_bitmap(self, start: Gfn, pages: int) -> bytes:
        """See `interfaces.StatusSource`."""
        return self.private_bits(start, bitmap_bytes(pages) * 8).tobytes()

    def set_status(self, section: int, page: int, pages: int, private: int) -> int:
        """A hypercall of the guest: `pages` pages from `page` of a section on. 0."""
        self.is_touched = True
        if section == WIDE_SECTION:
            first = WIDE_GFN
        else:
            sections = self.machine.sections
            first = sections[section % len(sections)].gpa >> PAGE_SHIFT
        first += page
        last = min(first + pages, U64_MASK >> PAGE_SHIFT)
        if first < last:
            (cut_regions if private else merge_region)(self.regions, first, last)
        return 0

    # QEMU -------------------------------------------------------------------------------------

    def sync(self) -> int:
        """The copy is brought up to date. 0."""
        self.is_touched = True
        self.status.sync()
        return 0

    def resize(self, block: int) -> int:
        """qemu_ram_resize() of a block, which keeps its size here; -ENOTTY without a bitmap."""
        self.is_touched = True
        if not isinstance(self.status, BitmapStatus):
            return -ENOTTY
        blocks = tuple(self.machine.blocks.values())
        self.status.block_resized(blocks[block % len(blocks)])
        return 0

    def handover(self) -> int:
        """The status record goes to a destination whose own is `received`. 0, or -EINVAL where
        the source refuses to write it or the destination to read it."""
        self.is_touched = True
        channel = _Bytes()
        wide = QemuDefect.LIST_WIDTH in self.defects
        writer = StreamWriter(channel, self.version.wire, wide_gfns=wide)
        record = self.status.final_record()
        try:
            if isinstance(record, SharedRegions):
                writer.shared_regions(record.regions, _BLOCK)
            else:
                writer.status_bitmap(record.ranges, _BLOCK)
            reader = StreamReader(self.version.wire, _limits(WIDE_GFN), is_repaired=True)
            for found in reader.read(channel.data):
                self._receive(found)
        except InputError:
            return -EINVAL
        return 0

    def _receive(self, record: object) -> None:
        if isinstance(record, SharedRegions):
            if QemuDefect.LIST_LOAD not in self.defects:
                self.received.clear()
            for start, end in record.regions:
                merge_region(self.received, start, end)
        elif isinstance(record, StatusBitmap):
            for part in record.ranges:
                self._receive_range(part)

    def _receive_range(self, part: BitmapRange) -> None:
        bits = bitarray(endian="little")
        bits.frombytes(part.bits)
        take_bits(self.received, bits, part.start >> PAGE_SHIFT, part.pages)

    def reset(self) -> int:
        """A system reset: the guest boots again with everything private.

        2020: the boot CPU's reset hook makes every page encrypted (D15). 2021 as posted: the list
        stays (D22). 2019 has no hook, so that a migrated guest cannot be rebooted (D8c): -ENOTTY.
        """
        self.is_touched = True
        if not self.version.resets_status and not self.has_list:
            return -ENOTTY
        if QemuDefect.LIST_RESET not in self.defects:
            self.regions.clear()
        return 0

    def send(self, step: int) -> int:
        """A page through the firmware, or the end of the migration by `step`. 0, or -EIO."""
        self.is_touched = True
        if self.is_completed:
            return -EINVAL
        try:
            match step % _STEPS:
                case 0:
                    self.outgoing.save_page(RamAddr(0))
                case 1:
                    self.outgoing.completed()
                    self.is_completed = True
                case other:
                    self.outgoing.failed(is_cancelled=other == SEND_CANCELLED)
        except TransportError:
            return -EIO
        return 0

    def feed(self, kind: int, first: int, second: int, third: int, filler: int) -> int:
        """A record of the stream as hostile bytes (see `record_bytes`); the number of records
        read, -EINVAL if it was refused, -EIO after that."""
        self.is_touched = True
        self._last_kind = kind % KINDS
        if self.is_stream_broken:
            return -EIO
        data = record_bytes(self.version.wire, kind, (first, second, third), filler)
        try:
            return sum(1 for _ in self.reader.read(data))
        except StreamError as error:
            self._last_field = error.fault.field
            self.is_stream_broken = True
            return -EINVAL

    # What a check may look at -----------------------------------------------------------------

    def shared_set(self, regions: Sequence[Region]) -> tuple[Region, ...]:
        """Regions as a sorted, joined tuple."""
        joined: list[Region] = []
        for start, end in regions:
            merge_region(joined, start, end)
        return tuple(joined)
