# SPDX-License-Identifier: GPL-2.0-or-later
"""The page status on the wire: bitmap ranges (2019, 2020) and shared regions (2021), read with the
tests that review asked for, or believed as posted (D8b, D12, D22, M75)."""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT
from guestemu.host.kvm.findings import HOST_MEMORY_BOUND, FindingKind, FindingLog
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.host.qemu.interfaces import Region
from guestemu.host.qemu.stream_format import BITMAP_CONTINUE, BITMAP_END, BitmapRange
from guestemu.host.qemu.wire import QemuWire
from guestemu.host.userspace.qemu_v4_stream import SHARED_REGION_LIST_CONT, SHARED_REGION_LIST_END

MAX_RANGES: Final = 512
"""Ranges of a repaired bitmap record: as many as KVM has had memory slots for (KVM_USER_MEM_SLOTS
was 509)."""
SPARE_REGIONS: Final = 4096
"""Shared regions that a repaired reader takes beyond one for each frame of RAM."""
RANGE_BYTES: Final = 24
"""Bytes of a range on the wire beside its bitmap."""
REGION_BOUND: Final = 1 << 20
"""Regions after which even the as-posted reader ends; QEMU would go on until memory is gone."""
REGION_BYTES: Final = 40
"""Bytes of QEMU's list element: two gfns, two pointers and malloc's header."""
_SOURCE: Final = "D8b, M75"


class StatusReader:
    """Reads status records for a machine whose RAM ends at gfn `top_gfn`; what an as-posted reader
    would suffer goes to `log`."""

    def __init__(self, top_gfn: int, log: FindingLog, *, is_repaired: bool) -> None:
        self._top = top_gfn
        self._log = log
        self._is_repaired = is_repaired

    def bitmap_ranges(self, wire: QemuWire) -> tuple[BitmapRange, ...]:
        """{ be32 1, range } ..., be32 2."""
        ranges: list[BitmapRange] = []
        total = 0
        while True:
            marker = wire.u32("bitmap marker")
            if marker == BITMAP_END:
                return tuple(ranges)
            if marker != BITMAP_CONTINUE:
                raise wire.refuse("bitmap marker", f"{marker:#x} is not 1 or 2", marker, 2, back=4)
            if len(ranges) >= MAX_RANGES and self._is_repaired:
                reason = f"more than {MAX_RANGES} ranges"
                raise wire.refuse("bitmap marker", reason, len(ranges) + 1, MAX_RANGES, back=4)
            ranges.append(self.bitmap_range(wire))
            total += len(ranges[-1].bits) + RANGE_BYTES
            if total > HOST_MEMORY_BOUND:
                reason = f"ranges of {total} bytes together"
                raise wire.refuse("bitmap", reason, total, HOST_MEMORY_BOUND)

    def bitmap_range(self, wire: QemuWire) -> BitmapRange:
        """be64 base GPA, be64 npages, be64 size, bytes."""
        start = wire.u64("bitmap base GPA")
        pages = wire.u64("bitmap npages")
        size = wire.u64("bitmap size")
        if self._is_repaired:
            self._validate(wire, start, pages, size)
        else:
            self._believe(wire, start, pages, size)
        return BitmapRange(start, pages, wire.take(size, "bitmap"))

    def _validate(self, wire: QemuWire, start: int, pages: int, size: int) -> None:
        """Gilbert's three: alignment, size against sense, npages against size."""
        if start & PAGE_MASK:
            reason = f"{start:#x} is not page-aligned"
            raise wire.refuse("bitmap base GPA", reason, start, PAGE_MASK, back=24)
        end = (start >> PAGE_SHIFT) + pages
        if not pages or end > self._top:
            reason = f"{pages} pages from GPA {start:#x}; RAM ends at gfn {self._top:#x}"
            raise wire.refuse("bitmap npages", reason, pages, self._top, back=16)
        need = bitmap_bytes(pages)
        if size != need:
            reason = f"{size} bytes for {pages} pages, which need {need}"
            raise wire.refuse("bitmap size", reason, size, need, back=8)

    def _believe(self, wire: QemuWire, start: int, pages: int, size: int) -> None:
        """malloc(size), read, KVM_SET_PAGE_ENC_BITMAP of npages: notes what that would do."""
        if size > HOST_MEMORY_BOUND:
            message = f"the stream made QEMU allocate {size} bytes for a bitmap"
            self._log.add(FindingKind.HOST_MEMORY, size, message, _SOURCE)
        if bitmap_bytes(pages) > size:
            message = f"KVM reads {bitmap_bytes(pages)} bytes of a bitmap of {size}"
            self._log.add(FindingKind.OUT_OF_BOUNDS, bitmap_bytes(pages) - size, message, _SOURCE)
        if start & PAGE_MASK:
            message = f"bitmap base GPA {start:#x} is not page-aligned and was believed"
            self._log.add(FindingKind.OUT_OF_BOUNDS, 0, message, "D8b, base GPA")
        if size > HOST_MEMORY_BOUND:
            reason = f"QEMU ends: malloc of {size} bytes that the stream promised"
            raise wire.refuse("bitmap size", reason, size, HOST_MEMORY_BOUND, back=8)

    def regions(self, wire: QemuWire) -> tuple[Region, ...]:
        """{ be32 1, be32 start, be32 end } ..., be32 2 (D22); as posted any other word ends it."""
        regions: list[Region] = []
        limit = self._top + SPARE_REGIONS
        while True:
            marker = wire.u32("region marker")
            if marker != SHARED_REGION_LIST_CONT:
                break
            start, end = wire.u32("region start"), wire.u32("region end")
            if self._is_repaired:
                _validate_region(wire, regions, start, end, limit)
            regions.append((start, end))
            if len(regions) > REGION_BOUND:
                self._note_regions(len(regions))
                reason = f"more than {REGION_BOUND} regions"
                raise wire.refuse("region", reason, len(regions), REGION_BOUND, back=8)
        if marker != SHARED_REGION_LIST_END and self._is_repaired:
            reason = f"{marker:#x} is not 1 or 2"
            raise wire.refuse("region marker", reason, marker, 2, back=4)
        if len(regions) > limit:
            self._note_regions(len(regions))
        return tuple(regions)

    def _note_regions(self, count: int) -> None:
        message = f"the stream made QEMU keep {count} regions for {self._top} frames"
        self._log.add(FindingKind.HOST_MEMORY, count * REGION_BYTES, message, "D22, M55")


def _validate_region(
    wire: QemuWire, regions: list[Region], start: int, end: int, limit: int
) -> None:
    """Not empty, in order of their starts, not too many. They may overlap, as QEMU's own list does
    (D20), and lie above RAM, as a guest's MMIO does."""
    if not start < end:
        reason = f"[{start:#x}, {end:#x}) is empty or reversed"
        raise wire.refuse("region", reason, start, end, back=8)
    if regions and start < regions[-1][0]:
        reason = f"starts at gfn {start:#x}, the one before at {regions[-1][0]:#x}"
        raise wire.refuse("region", reason, start, regions[-1][0], back=8)
    if len(regions) >= limit:
        raise wire.refuse("region", f"more than {limit} regions", limit + 1, limit, back=8)
