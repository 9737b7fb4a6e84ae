# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables that the fast path decodes by and reads page tables by, made from Python's own."""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from guestemu.campaign.fastpath.records import (
    BYTE_VALUES,
    REGIONS,
    InputRecord,
    PlaceRecord,
    PlanRecord,
    RegionRecord,
    WindowRecord,
)
from guestemu.guest.base import Guest
from guestemu.machine.leafmap import LeafMap
from guestemu.program.binary import OpDecoder, PageOperand, Posture, RecordPlan

_CPL_SHIFT: Final = 2
_VMCALL_SHIFT: Final = 4
_RAW_SHIFT: Final = 5
_VA_BITS: Final = (1 << 48) - 1


Owner = ctypes.Array[ctypes.c_char] | ctypes.Array[InputRecord] | ctypes.Structure | ctypes.c_char
"""Memory that ctypes holds, or a view of other memory."""


class Tables:
    """Arrays that records refer to by address; kept as long as this is."""

    def __init__(self) -> None:
        self._keep: list[object] = []
        self._words: dict[tuple[int, ...], int] = {}

    def keep(self, owner: Owner) -> int:
        """Keeps ctypes memory; its host address."""
        self._keep.append(owner)
        return ctypes.addressof(owner)

    def zeroes(self, count: int) -> int:
        """The host address of `count` 64-bit words that are 0; free until they are used."""
        area = mmap.mmap(-1, 8 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return self.keep(ctypes.c_char.from_buffer(area))

    def words(self, values: Sequence[int]) -> int:
        """The host address of `values` as 64-bit words; equal ones are stored once."""
        known = tuple(values)
        if known not in self._words:
            words = array("Q", known)
            self._keep.append(words)
            self._words[known] = words.buffer_info()[0]
        return self._words[known]

    def octets(self, data: bytes) -> int:
        """The host address of a writable copy of `data`."""
        buffer = ctypes.create_string_buffer(data, max(1, len(data)))
        return self.keep(buffer)

    def plans(self, decoder: OpDecoder) -> int:
        """`struct plan` for each value of the kind byte."""
        records = (PlanRecord * BYTE_VALUES)(*map(self._plan, decoder.plans))
        self._keep.append(records)
        return ctypes.addressof(records)

    def _plan(self, plan: RecordPlan) -> PlanRecord:
        record = PlanRecord(int(plan.kind), plan.has_page, plan.is_call, len(plan.masks))
        for position, (palette, mask) in enumerate(zip(plan.palettes, plan.masks, strict=True)):
            record.palettes[position] = self.words(palette)
            record.masks[position] = mask
        record.postures = self.octets(bytes(map(_posture, plan.postures)))
        return record

    def places(self, decoder: OpDecoder) -> int:
        """`struct place` for each value of the region byte."""
        records = (PlaceRecord * BYTE_VALUES)(*map(self._place, decoder.places))
        self._keep.append(records)
        return ctypes.addressof(records)

    def _place(self, place: PageOperand) -> PlaceRecord:
        return PlaceRecord(
            int(place.region), place.pages, self.words(place.palette), int(place.flag)
        )

    def table_pages(self, leaf_map: LeafMap, frames: int) -> int:
        """A word for each frame: 0, or the level of a page table and the address it maps from."""
        address = self.zeroes(frames)
        words = (ctypes.c_uint64 * frames).from_address(address)
        for gfn, (level, base) in leaf_map.tables.items():
            words[gfn] = base | level
        return address

    def windows(self, leaf_map: LeafMap) -> Iterable[WindowRecord]:
        """The direct map and the alias window as they are now."""
        found = zip(leaf_map.windows, (leaf_map.private, leaf_map.alias), strict=True)
        for window, bits in found:
            if window is None:
                yield WindowRecord()
                continue
            record = WindowRecord(window.gva & _VA_BITS, window.gfn, window.pages)
            record.bits.assign(bits)
            record.base.assign(bits)
            yield record


def _posture(posture: Posture) -> int:
    return (
        posture.mode
        | posture.cpl << _CPL_SHIFT
        | posture.instruction << _VMCALL_SHIFT
        | posture.raw << _RAW_SHIFT
    )


def regions(guest: Guest) -> Iterable[RegionRecord]:
    """`struct region` for each region in order; no pages where the guest has none."""
    by_number = {int(region): placed for region, placed in guest.regions.items()}
    for number in range(REGIONS):
        placed = by_number.get(number)
        if placed is None:
            yield RegionRecord()
        else:
            yield RegionRecord(placed.gva, placed.gpa, placed.pages)
