# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's list of shared regions, patch set "Add SEV guest live migration support" v4 (August 2021).

Source: D20, completed where it leaves the walk open by the reading that reproduces D21: 322 of
27000 three-operation sequences over five pages fail, all by a page that stays shared.
"""

from __future__ import annotations

from guestemu.host.kvm.region_list import Region


def add_qemu_region(regions: list[Region], start: int, end: int) -> None:
    """The add function as posted.

    A range that starts before an element but overlaps it becomes an element of its own, so
    elements can overlap; nothing is ever joined with its followers.
    """
    for index, (first, last) in enumerate(regions):
        if first <= start and end <= last:
            return
        if first <= start <= last:
            regions[index] = (first, end)
            return
        if first > start:
            regions.insert(index, (start, end))
            return
    regions.append((start, end))


def remove_qemu_region(regions: list[Region], start: int, end: int) -> None:
    """The remove function as posted.

    Trims, splits or deletes each element that the range meets, and stops at the first whose old
    end reaches the range's end: what overlaps it further back in the list stays.
    """
    index = 0
    while index < len(regions):
        first, last = regions[index]
        left, right = max(start, first), min(end, last)
        step = 1
        if left <= right:
            if left == first and right == last:
                del regions[index]
                step = 0
            elif left == first:
                regions[index] = (right, last)
            elif right == last:
                regions[index] = (first, left)
            else:
                regions[index : index + 1] = [(first, left), (right, last)]
                step = 2
        if end <= last:
            return
        index += step
