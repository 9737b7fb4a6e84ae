# SPDX-License-Identifier: GPL-2.0-or-later
"""Region G: 2 GiB of the direct map in 1 GiB leaves, taken away from the page allocator.

The allocator returns at most 4 MiB at a time, from no chosen place. So everything below 4 GiB is
allocated, and what is not wanted is freed. G then belongs to the program alone.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, PUD_SIZE, Gpa, Gva
from guestemu.abi.regions import REGIONS, Region
from guestemu.guest.base import PlacedRegion
from guestemu.guest.linux.boot import BootedKernel
from guestemu.guest.linux.calls import KernelCalls
from guestemu.machine.paging import walk

LARGE_MEMORY: Final = 4096
"""MiB of guest memory from which G exists."""

_START: Final = PUD_SIZE
_GFP_DMA32: Final = 0x4
_GFP_NOWARN: Final = 0x2000
"""Without any reclaim bit: nothing else runs yet that could give memory back."""
_ORDER: Final = 10
_GET_FREE_PAGES: Final = ("__get_free_pages", "get_free_pages_noprof")
_PUD_LEVEL: Final = 3


def reserve_giant(booted: BootedKernel, calls: KernelCalls, root: Gpa) -> PlacedRegion | None:
    """Region G of a kernel with at least `LARGE_MEMORY`; None where the kernel needs a part of it
    or maps it in smaller leaves."""
    machine = booted.machine
    if machine.config.frames << PAGE_SHIFT < LARGE_MEMORY << 20:
        return None
    direct_map = calls.read_u64(booted.kernel.address("page_offset_base"))
    size = REGIONS[Region.G].pages * PAGE_SIZE
    first = direct_map + _START
    for address in range(first, first + size, PUD_SIZE):
        leaf = walk(machine.ram, machine.pte_cbit, root, Gva(address))
        if not leaf.is_present or leaf.level != _PUD_LEVEL:
            return None
    name = next(name for name in _GET_FREE_PAGES if name in booted.kernel.symbols)
    inside = 0
    others = []
    while block := calls.call(name, _GFP_DMA32 | _GFP_NOWARN, _ORDER).value:
        if first <= block < first + size:
            inside += 1
        else:
            others.append(block)
    for block in others:
        calls.call("free_pages", block, _ORDER)
    if inside << _ORDER != REGIONS[Region.G].pages:
        return None
    return PlacedRegion(Gva(first), Gpa(_START), REGIONS[Region.G].pages)
