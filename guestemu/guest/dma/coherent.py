# SPDX-License-Identifier: GPL-2.0-or-later
"""dma_alloc_coherent and dma_free_coherent of a SEV guest: which pages are converted, and when.

Models `dma_direct_alloc`, `dma_direct_alloc_pages` and their frees (kernel/dma/direct.c, facts B1
to B5, A.9) by kernel generation. Order of steps: allocate, decrypt, memset; encrypt, free. The
conversions themselves are the guest's.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, get_order, page_align, pfn_up
from guestemu.abi.errors import InputError
from guestemu.guest.dma.cma import CmaArea
from guestemu.guest.dma.conversions import CoherentGuest
from guestemu.guest.dma.gfp import GFP_KERNEL, may_block
from guestemu.guest.dma.policy import AllocatorRules, OnFailure
from guestemu.guest.dma.pools import AtomicPools, PoolGrowth
from guestemu.guest.dma.zones import DMA_BIT_MASK_64, ZonedAllocator

KEPT_SHAPES: Final = 4096


class Origin(enum.Enum):
    """Who shares pages, and where they come from."""

    DMA = "dma"
    """dma_alloc_coherent and dma_alloc_pages."""
    PAGES = "pages"
    """A driver's own alloc_pages() and set_memory_decrypted(), no memset (sev-guest, B11)."""
    BOOT = "boot"
    """memblock, at boot: swiotlb (B9). Cleared before its decryption since 6.1, after it before."""


class Buffer(msgspec.Struct, frozen=True, gc=False):
    """A coherent buffer: `size` bytes from frame `gfn` on.

    `block_pages` are taken from the page allocator (a power of two; 0 for a pool buffer),
    `converted_pages` are shared for this buffer's sake (0 for a pool buffer).
    """

    gfn: Gfn
    size: int
    block_pages: int
    converted_pages: int
    is_from_pool: bool


class AllocOutcome(enum.Enum):
    """How an allocation ended."""

    CONVERTED = "converted"
    POOL = "from the atomic pool"
    NO_MEMORY = "no memory"
    POOL_EMPTY = "atomic pool empty"
    DECRYPT_FAILED = "decrypt failed"


class AllocRecord(msgspec.Struct, frozen=True, gc=False):
    """What an allocation did. `buffer` is None unless it succeeded.

    `decrypted_pages` were asked for in one set_memory_decrypted call, whose result is `error` (0 or
    a negative errno). After a failure the block was leaked (`leaked_pages`) or freed although some
    of it may be shared (`freed_suspect_pages`).
    """

    outcome: AllocOutcome
    buffer: Buffer | None = None
    decrypted_pages: int = 0
    error: int = 0
    leaked_pages: int = 0
    freed_suspect_pages: int = 0


class FreeOutcome(enum.Enum):
    """How a free ended."""

    FREED = "freed"
    POOL = "back to the atomic pool"
    ENCRYPT_FAILED = "encrypt failed"
    UNKNOWN = "not an allocated buffer"


class FreeRecord(msgspec.Struct, frozen=True, gc=False):
    """What a free did; fields as in `AllocRecord`. `is_warned`: the kernel logged the failure.

    An UNKNOWN free (also the second free of a buffer) changes nothing.
    """

    outcome: FreeOutcome
    encrypted_pages: int = 0
    error: int = 0
    leaked_pages: int = 0
    freed_suspect_pages: int = 0
    is_warned: bool = False


_CONVERTED: Final = AllocOutcome.CONVERTED
_FREED: Final = FreeOutcome.FREED


class PoolsView(Protocol):
    """What a replay asks of atomic pools."""

    growths: list[PoolGrowth]
    """Every attempt to grow a pool since boot."""

    def run_work(self) -> tuple[PoolGrowth, ...]:
        """Runs the kernel's pending work; the attempts to grow that it made."""


class CoherentAllocator(Protocol):
    """dma_alloc_coherent of some guest: this model's, or a real kernel's."""

    @property
    def pools(self) -> PoolsView:
        """The atomic pools."""

    @property
    def leaked_pages(self) -> int:
        """Pages that were leaked so far."""

    @property
    def pages_beyond(self) -> int:
        """Pages decrypted behind the end of their buffer's memory so far (5.10 with CMA)."""

    def boot(self) -> None:
        """Makes the atomic pools."""

    def alloc(
        self,
        size: int,
        gfp: frozenset[str] = GFP_KERNEL,
        mask: int = DMA_BIT_MASK_64,
        via_pages: bool = False,
    ) -> AllocRecord:
        """Allocates `size` bytes."""

    def share(self, size: int, origin: Origin) -> AllocRecord:
        """Shares `size` bytes that the DMA code knows nothing of; `free` takes them back."""

    def free(self, gfn: Gfn) -> FreeRecord:
        """Frees the buffer that starts at frame `gfn`."""


class CoherentDma:
    """The coherent allocator of one guest. Call `boot` once before the first allocation.

    `memory` are the frames it may use, `policy` the kernel generation, `pool_bytes` the size of an
    atomic pool (None: by RAM size). `pool_guest` converts the pools' pages, if that is to be told
    apart from the conversions of buffers. `cma_pages` of `memory` become the contiguous area (0:
    the kernel has none). InputError when there is no room for that.
    """

    def __init__(
        self,
        guest: CoherentGuest,
        memory: ZonedAllocator,
        policy: AllocatorRules,
        pool_bytes: int | None = None,
        pool_guest: CoherentGuest | None = None,
        cma_pages: int = 0,
    ) -> None:
        self.pools = AtomicPools(pool_guest or guest, memory, pool_bytes)
        self.policy = policy
        self._guest = guest
        self._memory = memory
        self._buffers: dict[Gfn, Buffer] = {}
        self._shapes: dict[int, tuple[int, int, int]] = {}
        self._leaked_pages = 0
        self._pages_beyond = 0
        self._cma: CmaArea | None = None
        if cma_pages:
            first = memory.reserve(cma_pages)
            if first is None:
                raise InputError(
                    f"cma of {cma_pages >> 8} MiB: the guest has no such room; take less of it or "
                    f"more memory"
                )
            self._cma = CmaArea(first, cma_pages)

    @property
    def leaked_pages(self) -> int:
        """Pages that were leaked so far."""
        return self._leaked_pages

    @property
    def pages_beyond(self) -> int:
        """Pages decrypted behind the end of their buffer's memory so far (5.10 with CMA)."""
        return self._pages_beyond

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The buffers that are allocated."""
        return tuple(self._buffers.values())

    def boot(self) -> None:
        """Makes the atomic pools."""
        self.pools.boot()

    def alloc(
        self,
        size: int,
        gfp: frozenset[str] = GFP_KERNEL,
        mask: int = DMA_BIT_MASK_64,
        via_pages: bool = False,
    ) -> AllocRecord:
        """Allocates `size` bytes that a device with DMA mask `mask` reaches.

        `via_pages`: dma_alloc_pages, which clears `size` bytes; dma_alloc_coherent clears whole
        pages. Both convert the same pages.
        """
        if size < 1:
            return AllocRecord(AllocOutcome.NO_MEMORY)
        order, aligned, pages = self._shapes.get(size) or self._shape(size)
        cleared = size if via_pages else aligned
        if not may_block(gfp):
            return self._alloc_from_pool(size, cleared, mask, gfp)
        if self._cma is not None and aligned > PAGE_SIZE:
            first = self._cma.allocate(aligned >> PAGE_SHIFT, (mask + 1) >> PAGE_SHIFT)
            if first is not None:
                return self._share(first, aligned >> PAGE_SHIFT, size, pages, cleared)
        block = self._memory.allocate(order, mask)
        if block is None:
            return AllocRecord(AllocOutcome.NO_MEMORY)
        error = self._guest.set_memory_decrypted(block.gfn, pages)
        if error:
            leaked, suspect = self._give_up(block.gfn, block.pages, self.policy.decrypt_failure)
            return AllocRecord(AllocOutcome.DECRYPT_FAILED, None, pages, error, leaked, suspect)
        gfn = block.gfn
        self._guest.memset(gfn, cleared)
        buffer = self._buffers[gfn] = Buffer(gfn, size, 1 << order, pages, False)
        return AllocRecord(_CONVERTED, buffer, pages)

    def free(self, gfn: Gfn) -> FreeRecord:
        """Frees the buffer that starts at frame `gfn`. A pool buffer stays shared (B3)."""
        buffer = self._buffers.pop(gfn, None)
        if buffer is None:
            return FreeRecord(FreeOutcome.UNKNOWN)
        if buffer.is_from_pool:
            self.pools.free(gfn)
            return FreeRecord(FreeOutcome.POOL)
        pages = buffer.converted_pages
        error = self._guest.set_memory_encrypted(gfn, pages)
        if not error:
            self._give_back(gfn)
            return FreeRecord(_FREED, pages)
        leaked, suspect = self._give_up(gfn, buffer.block_pages, self.policy.encrypt_failure)
        return FreeRecord(
            FreeOutcome.ENCRYPT_FAILED, pages, error, leaked, suspect, self.policy.warns
        )

    def share(self, size: int, origin: Origin) -> AllocRecord:
        """See `CoherentAllocator`. swiotlb is one reservation, without any limit on its size."""
        pages = pfn_up(size)
        if origin is Origin.BOOT:
            first = self._memory.reserve(pages)
            if first is None:
                return AllocRecord(AllocOutcome.NO_MEMORY)
            if self.policy.clears_swiotlb_late:
                return self._share(first, pages, size, pages, page_align(size))
            self._guest.memset(first, page_align(size))
            return self._share(first, pages, size, pages, 0)
        block = self._memory.allocate(get_order(size))
        if block is None:
            return AllocRecord(AllocOutcome.NO_MEMORY)
        return self._share(block.gfn, block.pages, size, pages, 0)

    def _share(self, gfn: Gfn, held: int, size: int, pages: int, cleared: int) -> AllocRecord:
        """Decrypts `pages` of the `held` pages from `gfn` on and clears `cleared` bytes."""
        self._pages_beyond += max(0, pages - held)
        error = self._guest.set_memory_decrypted(gfn, pages)
        if error:
            leaked, suspect = self._give_up(gfn, held, self.policy.decrypt_failure)
            return AllocRecord(AllocOutcome.DECRYPT_FAILED, None, pages, error, leaked, suspect)
        if cleared:
            self._guest.memset(gfn, cleared)
        buffer = self._buffers[gfn] = Buffer(gfn, size, held, pages, False)
        return AllocRecord(_CONVERTED, buffer, pages)

    def _alloc_from_pool(
        self, size: int, cleared: int, mask: int, gfp: frozenset[str]
    ) -> AllocRecord:
        gfn = self.pools.allocate(size, mask, gfp)
        if gfn is None:
            return AllocRecord(AllocOutcome.POOL_EMPTY)
        self._guest.memset(gfn, cleared)
        buffer = Buffer(gfn, size, 0, 0, True)
        self._buffers[gfn] = buffer
        return AllocRecord(AllocOutcome.POOL, buffer)

    def _shape(self, size: int) -> tuple[int, int, int]:
        """Order, bytes of whole pages and pages to convert; remembered, as drivers ask for few
        sizes."""
        if len(self._shapes) >= KEPT_SHAPES:
            self._shapes.clear()
        shape = get_order(size), page_align(size), self.policy.converted_pages(size)
        self._shapes[size] = shape
        return shape

    def _give_up(self, gfn: Gfn, pages: int, policy: OnFailure) -> tuple[int, int]:
        """Leaks or frees a block; returns (leaked pages, pages freed although suspect)."""
        if policy is OnFailure.LEAK:
            self._leaked_pages += pages
            return pages, 0
        self._give_back(gfn)
        return 0, pages

    def _give_back(self, gfn: Gfn) -> None:
        if self._cma is None or not self._cma.free(gfn):
            self._memory.free(gfn)
