# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of shared regions [start, end): the posted list functions, and what they should have done.

Source: K2-b, K2-c (KVM patch set v10), completed where the mails leave the walk open by the
reading that reproduces K2-f: 175 of 900 two-operation sequences over five pages fail.
"""

from __future__ import annotations

from bitarray import bitarray

Region = tuple[int, int]
"""(start_gfn, end_gfn), the end exclusive."""


def add_region(regions: list[Region], start: int, end: int) -> int:
    """add_shared_region() as posted (K2-b); returns the change of the count, 1 or 0.

    The first element with element.start <= start <= element.end gets `end` as its end, which can
    shrink it, and is never merged with its followers.
    """
    for index, (first, last) in enumerate(regions):
        if last < start:
            continue
        if first <= start:
            regions[index] = (first, end)
            return 0
        regions.insert(index, (start, end))
        return 1
    regions.append((start, end))
    return 1


def remove_region(regions: list[Region], start: int, end: int) -> int:
    """remove_shared_region() as posted (K2-c); returns the change of the count, -1, 0 or 1.

    Only a range inside one element is taken out, one page too many on each cut side; a range that
    spans elements or reaches outside is ignored.
    """
    for index, (first, last) in enumerate(regions):
        if (first, last) == (start, end):
            del regions[index]
            return -1
        if first <= start and end <= last:
            if first == start:
                regions[index] = (end + 1, last)
                return 0
            if last == end:
                regions[index] = (first, start - 1)
                return 0
            regions[index : index + 1] = [(first, start - 1), (end + 1, last)]
            return 1
    return 0


def merge_region(regions: list[Region], start: int, end: int) -> None:
    """Set union with [start, end): sorted, disjoint, touching regions joined."""
    if start >= end:
        return
    kept = []
    for first, last in regions:
        if last < start or end < first:
            kept.append((first, last))
        else:
            start, end = min(start, first), max(end, last)
    kept.append((start, end))
    regions[:] = sorted(kept)


def take_bits(regions: list[Region], bits: bitarray, first: int, pages: int) -> None:
    """The regions after each of `pages` frames from `first` on was cut (its bit is 1) or added. As
    many runs of equal bits are as many changes."""
    page = 0
    while page < pages:
        value = bits[page]
        end = bits.find(not value, page, pages)
        end = pages if end < 0 else end
        (cut_regions if value else merge_region)(regions, first + page, first + end)
        page = end


def cut_regions(regions: list[Region], start: int, end: int) -> None:
    """Set difference with [start, end)."""
    kept = []
    for first, last in regions:
        kept += [(first, min(last, start)), (max(first, end), last)]
    regions[:] = [region for region in kept if region[0] < region[1]]
