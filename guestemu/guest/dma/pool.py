# SPDX-License-Identifier: GPL-2.0-or-later
"""One atomic pool: pages that were decrypted ahead of time, for allocations that may not sleep.

Models the gen_pool that kernel/dma/pool.c (Linux 5.10 to 7.1, fact B8) keeps for a zone: chunks of
pages, page granularity, first fit aligned to the order of the request
(`gen_pool_first_fit_order_align` in lib/genalloc.c), the newest chunk searched first. A pool only
grows. Who decides when, and who converts the pages, is `guestemu.guest.dma.pools`.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, pfn_up
from guestemu.guest.dma.allocator import MAX_PAGE_ORDER
from guestemu.guest.dma.zones import Zone

MIN_POOL_BYTES: Final = 128 << 10
MAX_POOL_PAGES: Final = 1 << MAX_PAGE_ORDER


def default_pool_bytes(ram_pages: int) -> int:
    """The size each pool gets at boot for a guest of `ram_pages` pages.

    128 KiB per GiB of RAM, at least 128 KiB, at most one largest block (`dma_atomic_pool_init`).
    """
    pages = min(ram_pages // ((1 << 30) // MIN_POOL_BYTES), MAX_POOL_PAGES)
    return max(pages << PAGE_SHIFT, MIN_POOL_BYTES)


class AtomicPool:
    """The pool of one zone."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self._chunks: list[tuple[int, bitarray]] = []
        self._taken: dict[int, int] = {}
        self._pages = 0
        self._free_pages = 0

    @property
    def pages(self) -> int:
        """Pages in the pool (gen_pool_size)."""
        return self._pages

    @property
    def free_pages(self) -> int:
        """Pages not handed out (gen_pool_avail)."""
        return self._free_pages

    def grow(self, gfn: Gfn, pages: int) -> None:
        """Adds frames [gfn, gfn + pages), already shared (gen_pool_add_virt)."""
        self._chunks.insert(0, (gfn, bitarray(pages)))
        self._chunks[0][1].setall(0)
        self._pages += pages
        self._free_pages += pages

    def allocate(self, size: int, below: int | None = None) -> Gfn | None:
        """The first frame of a run for `size` bytes, or None.

        With `below`, a run that reaches that frame number or beyond is not handed out. As in the
        kernel only the first run that fits is looked at.
        """
        pages = pfn_up(size)
        for first, used in self._chunks:
            position = _first_fit(used, pages)
            if position is None:
                continue
            if below is not None and first + position + pages > below:
                return None
            used[position : position + pages] = True
            self._taken[first + position] = pages
            self._free_pages -= pages
            return Gfn(first + position)
        return None

    def free(self, gfn: Gfn) -> int:
        """Gives back the run that starts at `gfn`; returns its pages, 0 when there is no such run.

        The pages stay shared (B3).
        """
        pages = self._taken.pop(gfn, 0)
        for first, used in self._chunks:
            if pages and first <= gfn < first + len(used):
                used[gfn - first : gfn - first + pages] = False
        self._free_pages += pages
        return pages


def _first_fit(used: bitarray, pages: int) -> int | None:
    align = 1 << (pages - 1).bit_length()
    for position in range(0, len(used) - pages + 1, align):
        if not used[position : position + pages].any():
            return position
    return None
