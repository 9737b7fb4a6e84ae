# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory zones of an x86-64 guest, and how a device's DMA mask chooses one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, Gfn
from guestemu.guest.dma.allocator import Block, BuddyAllocator, FreeResult

DMA_BIT_MASK_64: Final = (1 << 64) - 1


class Zone(enum.Enum):
    """The zones, highest first (arch/x86/mm/init.c: 16 MiB and 4 GiB)."""

    NORMAL = "Normal"
    DMA32 = "DMA32"
    DMA = "DMA"


ZONE_END: Final[Mapping[Zone, int | None]] = {
    Zone.NORMAL: None,
    Zone.DMA32: 1 << (32 - PAGE_SHIFT),
    Zone.DMA: 1 << (24 - PAGE_SHIFT),
}
"""First frame after each zone; None: the end of memory."""

_FALLBACKS: Final[Mapping[Zone, tuple[Zone, ...]]] = {
    zone: tuple(Zone)[index:] for index, zone in enumerate(Zone)
}


def zones_for(preferred: Zone) -> tuple[Zone, ...]:
    """The zone and those below it, in the order the kernel falls back."""
    return _FALLBACKS[preferred]


def frames_below(mask: int) -> int:
    """The first frame number that a device with DMA mask `mask` (in bytes) cannot reach whole."""
    return (mask + 1) >> PAGE_SHIFT


_NORMAL: Final = Zone.NORMAL


class ZonedAllocator:
    """Frames [first, first + frames) divided into zones, each with its own buddy allocator.

    `allocate` takes from the highest zone whose block the mask can reach, which is the outcome of
    the retries in `__dma_direct_alloc_pages` (kernel/dma/direct.c, B2).
    """

    def __init__(self, first: Gfn, frames: int) -> None:
        end = first + frames
        self._zones: dict[Zone, BuddyAllocator] = {}
        start: int = first
        for zone in reversed(Zone):
            limit = ZONE_END[zone]
            zone_end = end if limit is None else min(end, limit)
            if zone_end > start:
                self._zones[zone] = BuddyAllocator(Gfn(start), zone_end - start)
                start = zone_end
        self._normal = self._reached(Zone.NORMAL)

    @property
    def free_pages(self) -> int:
        """Free pages of all zones."""
        return sum(zone.free_pages for zone in self._zones.values())

    @property
    def frames(self) -> int:
        """Pages of all zones, free or not."""
        return sum(zone.frames for zone in self._zones.values())

    def has(self, zone: Zone) -> bool:
        """Whether the zone has any memory."""
        return zone in self._zones

    def allocate(
        self, order: int, mask: int = DMA_BIT_MASK_64, preferred: Zone = Zone.NORMAL
    ) -> Block | None:
        """A block of 2**order pages within `mask`, from `preferred` or a lower zone, or None."""
        below = (mask + 1) >> PAGE_SHIFT
        for zone in self._normal if preferred is _NORMAL else self._reached(preferred):
            block = zone.allocate(order, below)
            if block is not None:
                return block
        return None

    def _reached(self, preferred: Zone) -> tuple[BuddyAllocator, ...]:
        """The allocators of the zone and of those below it."""
        return tuple(self._zones[name] for name in zones_for(preferred) if name in self._zones)

    def reserve(self, pages: int) -> Gfn | None:
        """Takes neighbouring pages for good, from the highest zone below 4 GiB that has them (as
        swiotlb and CMA must be reachable by all devices); None: no room."""
        for name in (Zone.DMA32, Zone.NORMAL, Zone.DMA):
            zone = self._zones.get(name)
            block = None if zone is None else zone.reserve(pages)
            if block is not None:
                return block.gfn
        return None

    def free(self, gfn: Gfn) -> FreeResult:
        """Frees the block that starts at `gfn`; see `BuddyAllocator.free`."""
        for zone in self._zones.values():
            if zone.holds(gfn):
                return zone.free(gfn)
        return FreeResult.NOT_A_BLOCK

    def allocated_blocks(self) -> list[Block]:
        """The allocated blocks of all zones by address."""
        blocks = [block for zone in self._zones.values() for block in zone.allocated_blocks()]
        return sorted(blocks, key=lambda block: block.gfn)

    def free_blocks(self) -> list[Block]:
        """The free blocks of all zones by address."""
        blocks = [block for zone in self._zones.values() for block in zone.free_blocks()]
        return sorted(blocks, key=lambda block: block.gfn)
