# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace's allocations made by a real kernel: dma_alloc_attrs() and dma_free_attrs().

Placement, large-page splits, conversions, clearing and the atomic pools are the kernel's own. What
it converted is read off the machine, as for the model's allocator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, Gpa, pfn_up
from guestemu.abi.errors import InputError
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.dma.coherent import (
    AllocOutcome,
    AllocRecord,
    Buffer,
    FreeOutcome,
    FreeRecord,
    Origin,
)
from guestemu.guest.dma.gfp import GFP_KERNEL, may_block
from guestemu.guest.dma.pools import PoolGrowth
from guestemu.guest.dma.zones import DMA_BIT_MASK_64


class Watch(Protocol):
    """Runs converting calls and counts what they did."""

    def judged(
        self,
        what: str,
        private: bool,
        call: Callable[[], CallOutcome],
        frames: Callable[[CallOutcome], tuple[int, int] | None],
    ) -> tuple[int, int]:
        """The call's value (or -EIO), and the pages whose C-bit changed."""

    def report_clearing(self, gfn: Gfn, pages: int) -> None:
        """Looks which of the pages that a call shared were cleared."""


class KernelPools:
    """The kernel's own atomic pools: they grow in a work item that never runs here."""

    def __init__(self) -> None:
        self.growths: list[PoolGrowth] = []

    def run_work(self) -> tuple[PoolGrowth, ...]:
        """Nothing is pending."""
        return ()


class KernelCoherent:
    """`CoherentAllocator` over a guest with an allocator of its own.

    `buffers` watches allocations and frees, `pools` the making of the atomic pools. Device masks
    are not passed on: the device reaches all memory.
    """

    def __init__(self, guest: Guest, buffers: Watch, pools: Watch) -> None:
        self.pools = KernelPools()
        self.leaked_pages = 0
        self.pages_beyond = 0
        self._guest = guest
        self._watch = buffers
        self._pool_watch = pools
        self._buffers: dict[Gfn, Buffer] = {}

    def boot(self) -> None:
        """Makes the device and the atomic pools (any call does)."""
        self._pool_watch.judged(
            "dma_atomic_pool_init",
            False,
            lambda: self._guest.dma_free_coherent(Gpa(0)),
            lambda _outcome: None,
        )

    def alloc(
        self,
        size: int,
        gfp: frozenset[str] = GFP_KERNEL,
        mask: int = DMA_BIT_MASK_64,
        via_pages: bool = False,
    ) -> AllocRecord:
        """See `CoherentAllocator`."""
        if size < 1:
            return AllocRecord(AllocOutcome.NO_MEMORY)
        blocks = may_block(gfp)
        pages = pfn_up(size)

        def frames(outcome: CallOutcome) -> tuple[int, int] | None:
            if outcome.value is None or outcome.value < 0 or not blocks:
                return None
            return outcome.value >> PAGE_SHIFT, pages

        value, flipped = self._watch.judged(
            f"dma_alloc_attrs of {size} bytes",
            False,
            lambda: self._guest.dma_alloc_coherent(size, blocks),
            frames,
        )
        if value < 0:
            lost = AllocOutcome.NO_MEMORY if blocks else AllocOutcome.POOL_EMPTY
            return AllocRecord(lost)
        gfn = Gfn(value >> PAGE_SHIFT)
        is_pool = not blocks
        buffer = Buffer(gfn, size, 0 if is_pool else pages, flipped, is_pool)
        self._buffers[gfn] = buffer
        if blocks:
            self._watch.report_clearing(gfn, pages)
        return AllocRecord(
            AllocOutcome.POOL if is_pool else AllocOutcome.CONVERTED, buffer, flipped
        )

    def share(self, size: int, origin: Origin) -> AllocRecord:
        """A booted kernel has made its swiotlb and has no such driver: InputError."""
        raise InputError(
            f"pages of {size} bytes that are shared otherwise than by dma_alloc_attrs(): a real "
            f"kernel shares its own at boot; use snippet:GENERATION or model:GENERATION"
        )

    def free(self, gfn: Gfn) -> FreeRecord:
        """See `CoherentAllocator`."""
        buffer = self._buffers.pop(gfn, None)
        if buffer is None:
            return FreeRecord(FreeOutcome.UNKNOWN)
        pages = pfn_up(buffer.size)
        is_pool = buffer.is_from_pool
        value, flipped = self._watch.judged(
            f"dma_free_attrs of {buffer.size} bytes",
            True,
            lambda: self._guest.dma_free_coherent(Gpa(gfn << PAGE_SHIFT)),
            lambda _outcome: None if is_pool else (gfn, pages),
        )
        if value < 0:
            self.leaked_pages += pages
            return FreeRecord(FreeOutcome.ENCRYPT_FAILED, flipped, value, pages)
        return FreeRecord(FreeOutcome.POOL if is_pool else FreeOutcome.FREED, flipped)
