# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's atomic pools: made at boot, asked in turn, grown by a work item.

Models kernel/dma/pool.c (`dma_atomic_pool_init`, `dma_alloc_from_pool`, `atomic_pool_expand`,
`atomic_pool_work_fn`; Linux 5.10 to 7.1; facts B8, A.9). The kernel grows a pool later, in a work
item; here `run_work` is that work item and the caller says when it runs.
"""

from __future__ import annotations

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, get_order, pfn_up
from guestemu.abi.errno import ENOMEM
from guestemu.guest.dma.allocator import MAX_PAGE_ORDER
from guestemu.guest.dma.conversions import CoherentGuest
from guestemu.guest.dma.pool import AtomicPool, default_pool_bytes
from guestemu.guest.dma.zones import Zone, ZonedAllocator, frames_below


class PoolGrowth(msgspec.Struct, frozen=True):
    """One attempt to grow a pool by `pages` pages from frame `gfn` on.

    `error` is 0 or a negative errno. When decrypting failed the pages went back to the allocator,
    though some may be shared (`freed_suspect`; all kernels to 7.1 do so, A.9). `decrypted` are the
    pages of the conversion asked for; without memory it is 0 and `gfn` is None.
    """

    zone: Zone
    gfn: Gfn | None
    pages: int
    error: int
    decrypted: int
    freed_suspect: int


class AtomicPools:
    """Up to three pools: of normal memory, of DMA32 and of DMA.

    `pool_bytes` is the `coherent_pool=` parameter; None: by RAM size. `growths` lists every attempt
    to grow since boot.
    """

    def __init__(
        self, guest: CoherentGuest, memory: ZonedAllocator, pool_bytes: int | None = None
    ) -> None:
        self.growths: list[PoolGrowth] = []
        self._guest = guest
        self._memory = memory
        size = default_pool_bytes(memory.frames) if pool_bytes is None else pool_bytes
        self._target_pages = pfn_up(size)
        self._pools: dict[Zone, AtomicPool] = {}
        self._is_work_due = False

    @property
    def pages(self) -> int:
        """Pages in all pools: shared for good."""
        return sum(pool.pages for pool in self._pools.values())

    @property
    def free_pages(self) -> int:
        """Pages of all pools that are not handed out."""
        return sum(pool.free_pages for pool in self._pools.values())

    def boot(self) -> None:
        """Makes the pools (postcore_initcall). A pool that gets no page does not exist."""
        for zone in (Zone.NORMAL, Zone.DMA, Zone.DMA32):
            if zone is not Zone.NORMAL and not self._memory.has(zone):
                continue
            pool = AtomicPool(zone)
            if self._expand(pool, self._target_pages):
                self._pools[zone] = pool

    def allocate(self, size: int, mask: int, gfp: frozenset[str]) -> Gfn | None:
        """A run for `size` bytes from the first pool that has one within `mask`, or None.

        The order is that of `dma_guess_pool`: the pool that flags and mask ask for, then those of
        lower zones. A pool that fell below its first size asks for the work item.
        """
        below = frames_below(mask)
        for zone in _pool_order(gfp, mask):
            pool = self._pools.get(zone)
            gfn = None if pool is None else pool.allocate(size, below)
            if pool is not None and gfn is not None:
                self._is_work_due |= pool.free_pages < self._target_pages
                return gfn
        return None

    def free(self, gfn: Gfn) -> int:
        """Gives a run back; returns its pages, 0 when it is of no pool (dma_free_from_pool)."""
        for pool in self._pools.values():
            if pages := pool.free(gfn):
                return pages
        return 0

    def run_work(self) -> tuple[PoolGrowth, ...]:
        """The work item, if it is due: each pool short of pages tries to double, at most 4 MiB."""
        if not self._is_work_due:
            return ()
        self._is_work_due = False
        before = len(self.growths)
        for pool in self._pools.values():
            if pool.free_pages < self._target_pages:
                self._expand(pool, pool.pages)
        return tuple(self.growths[before:])

    def _expand(self, pool: AtomicPool, pages: int) -> bool:
        order = min(get_order(pages << PAGE_SHIFT), MAX_PAGE_ORDER)
        block = self._memory.allocate(order, preferred=pool.zone)
        while block is None and order > 0:
            order -= 1
            block = self._memory.allocate(order, preferred=pool.zone)
        if block is None:
            self.growths.append(PoolGrowth(pool.zone, None, 0, -ENOMEM, 0, 0))
            return False
        error = self._guest.set_memory_decrypted(block.gfn, block.pages)
        suspect = 0
        if error:
            self._memory.free(block.gfn)
            suspect = block.pages
        else:
            pool.grow(block.gfn, block.pages)
        self.growths.append(
            PoolGrowth(pool.zone, block.gfn, block.pages, error, block.pages, suspect)
        )
        return not error


def _pool_order(gfp: frozenset[str], mask: int) -> tuple[Zone, ...]:
    """The pools to ask, by the flags or, as `dma_direct_optimal_gfp_mask`, by the mask."""
    if mask < 1 << 24 or not gfp.isdisjoint({"GFP_DMA", "__GFP_DMA"}):
        return (Zone.DMA,)
    if mask < 1 << 32 or not gfp.isdisjoint({"GFP_DMA32", "__GFP_DMA32"}):
        return (Zone.DMA32, Zone.DMA)
    return (Zone.NORMAL, Zone.DMA32, Zone.DMA)
