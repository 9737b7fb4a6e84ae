# SPDX-License-Identifier: GPL-2.0-or-later
"""Other ways a guest could provide coherent memory, for what-if comparisons.

| policy | what the guest does |
| kernel | what its kernel generation does |
| batch | one hypercall for each conversion, however many leaves it covers (against A5) |
| keep-shared | a freed buffer's block stays shared and is handed out again |
| pool-small[=PAGES] | buffers of up to PAGES pages (4) come out of 2 MiB chunks that stay shared |
| align-2m | buffers are packed into 2 MiB blocks, shared and made private as a whole |

Allocations that may not sleep come from the atomic pools under every policy (B2). A policy that
keeps memory shared clears a buffer when it is handed out, as the kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from guestemu.abi.addresses import Gfn, get_order, page_align, pfn_up
from guestemu.abi.errors import InputError
from guestemu.dma.cost import LEAF_PAGES
from guestemu.guest.dma.allocator import BuddyAllocator
from guestemu.guest.dma.coherent import (
    AllocOutcome,
    AllocRecord,
    Buffer,
    CoherentAllocator,
    CoherentDma,
    FreeOutcome,
    FreeRecord,
    Origin,
    PoolsView,
)
from guestemu.guest.dma.conversions import CoherentGuest
from guestemu.guest.dma.gfp import GFP_KERNEL, may_block
from guestemu.guest.dma.pool import AtomicPool
from guestemu.guest.dma.zones import DMA_BIT_MASK_64, Zone, ZonedAllocator

KERNEL: Final = "kernel"
BATCH: Final = "batch"
SMALL_PAGES: Final = 4
MAX_SMALL_PAGES: Final = 512
_LEAF_ORDER: Final = LEAF_PAGES.bit_length() - 1


class BlockStore(Protocol):
    """Where a policy takes blocking allocations from."""

    def take(self, size: int, mask: int) -> tuple[Gfn, int] | None:
        """A shared run for `size` bytes: its first frame and the pages that were converted for it;
        None when this store does not serve it."""

    def give(self, gfn: Gfn, size: int) -> int:
        """Takes the run back; the pages that were made private again."""


class StoreAllocator:
    """`CoherentAllocator`: a store in front of what the kernel does."""

    def __init__(self, inner: CoherentDma, store: BlockStore, guest: CoherentGuest) -> None:
        self._inner = inner
        self._store = store
        self._guest = guest
        self._sizes: dict[Gfn, int] = {}

    @property
    def pools(self) -> PoolsView:
        """The atomic pools."""
        return self._inner.pools

    @property
    def leaked_pages(self) -> int:
        """Pages that were leaked so far."""
        return self._inner.leaked_pages

    @property
    def pages_beyond(self) -> int:
        """See `CoherentAllocator`."""
        return self._inner.pages_beyond

    def share(self, size: int, origin: Origin) -> AllocRecord:
        """See `CoherentAllocator`; no policy changes it."""
        return self._inner.share(size, origin)

    def boot(self) -> None:
        """Makes the atomic pools."""
        self._inner.boot()

    def alloc(
        self,
        size: int,
        gfp: frozenset[str] = GFP_KERNEL,
        mask: int = DMA_BIT_MASK_64,
        via_pages: bool = False,
    ) -> AllocRecord:
        """See `CoherentAllocator`."""
        taken = self._store.take(size, mask) if size > 0 and may_block(gfp) else None
        if taken is None:
            return self._inner.alloc(size, gfp, mask, via_pages)
        gfn, converted = taken
        self._guest.memset(gfn, size if via_pages else page_align(size))
        self._sizes[gfn] = size
        buffer = Buffer(gfn, size, 0, converted, False)
        return AllocRecord(AllocOutcome.CONVERTED, buffer, converted)

    def free(self, gfn: Gfn) -> FreeRecord:
        """See `CoherentAllocator`."""
        size = self._sizes.pop(gfn, None)
        if size is None:
            return self._inner.free(gfn)
        return FreeRecord(FreeOutcome.FREED, self._store.give(gfn, size))


class KeptBlocks:
    """keep-shared: freed blocks by order, still shared; taken back when memory runs out."""

    def __init__(self, guest: CoherentGuest, memory: ZonedAllocator) -> None:
        self._guest = guest
        self._memory = memory
        self._kept: dict[int, list[Gfn]] = {}

    def take(self, size: int, mask: int) -> tuple[Gfn, int] | None:
        """See `BlockStore`. The whole block is converted, so that any buffer of its order fits."""
        order = get_order(size)
        kept = self._kept.get(order)
        if kept and mask == DMA_BIT_MASK_64:
            return kept.pop(), 0
        block = self._memory.allocate(order, mask)
        if block is None and self._reclaim():
            block = self._memory.allocate(order, mask)
        if block is None:
            return None
        self._guest.set_memory_decrypted(block.gfn, block.pages)
        return block.gfn, block.pages

    def give(self, gfn: Gfn, size: int) -> int:
        """See `BlockStore`."""
        self._kept.setdefault(get_order(size), []).append(gfn)
        return 0

    def _reclaim(self) -> bool:
        kept = [(gfn, order) for order, gfns in self._kept.items() for gfn in gfns]
        for gfn, order in kept:
            self._guest.set_memory_encrypted(gfn, 1 << order)
            self._memory.free(gfn)
        self._kept.clear()
        return bool(kept)


class SmallPool:
    """pool-small: chunks of 2 MiB that stay shared, for buffers of at most `limit` pages."""

    def __init__(self, guest: CoherentGuest, memory: ZonedAllocator, limit: int) -> None:
        self._guest = guest
        self._memory = memory
        self._limit = limit
        self._pool = AtomicPool(Zone.NORMAL)

    def take(self, size: int, mask: int) -> tuple[Gfn, int] | None:
        """See `BlockStore`."""
        if pfn_up(size) > self._limit or mask != DMA_BIT_MASK_64:
            return None
        gfn = self._pool.allocate(size)
        if gfn is not None:
            return gfn, 0
        block = self._memory.allocate(_LEAF_ORDER)
        if block is None:
            return None
        self._guest.set_memory_decrypted(block.gfn, block.pages)
        self._pool.grow(block.gfn, block.pages)
        gfn = self._pool.allocate(size)
        return None if gfn is None else (gfn, block.pages)

    def give(self, gfn: Gfn, size: int) -> int:
        """See `BlockStore`."""
        self._pool.free(gfn)
        return 0


class AlignedBlocks:
    """align-2m: 2 MiB blocks with a buddy allocator each; an empty one becomes private again."""

    def __init__(self, guest: CoherentGuest, memory: ZonedAllocator) -> None:
        self._guest = guest
        self._memory = memory
        self._blocks: dict[int, BuddyAllocator] = {}

    def take(self, size: int, mask: int) -> tuple[Gfn, int] | None:
        """See `BlockStore`."""
        order = get_order(size)
        if order > _LEAF_ORDER or mask != DMA_BIT_MASK_64:
            return None
        for allocator in self._blocks.values():
            if allocator.free_pages >> order:
                found = allocator.allocate(order)
                if found is not None:
                    return found.gfn, 0
        block = self._memory.allocate(_LEAF_ORDER)
        if block is None:
            return None
        self._guest.set_memory_decrypted(block.gfn, LEAF_PAGES)
        allocator = self._blocks[block.gfn] = BuddyAllocator(block.gfn, LEAF_PAGES, _LEAF_ORDER)
        found = allocator.allocate(order)
        return None if found is None else (found.gfn, LEAF_PAGES)

    def give(self, gfn: Gfn, size: int) -> int:
        """See `BlockStore`."""
        first = Gfn(gfn & -LEAF_PAGES)
        allocator = self._blocks[first]
        allocator.free(gfn)
        if allocator.free_pages < LEAF_PAGES:
            return 0
        del self._blocks[first]
        self._guest.set_memory_encrypted(first, LEAF_PAGES)
        self._memory.free(first)
        return LEAF_PAGES


_STORES: Final[Mapping[str, Callable[[CoherentGuest, ZonedAllocator, int], BlockStore]]] = {
    "keep-shared": lambda guest, memory, _limit: KeptBlocks(guest, memory),
    "pool-small": SmallPool,
    "align-2m": lambda guest, memory, _limit: AlignedBlocks(guest, memory),
}
POLICY_NAMES: Final = (KERNEL, BATCH, *_STORES)


def parse_policies(text: str) -> tuple[str, ...]:
    """Reads `NAME[=PAGES][,NAME...]`; "all" is every policy. InputError names a wrong one."""
    names = POLICY_NAMES[1:] if text == "all" else tuple(filter(None, text.split(",")))
    for name in names:
        _settings(name)
    if not names:
        raise InputError(f"policy {text!r}: names none; use all, {', '.join(POLICY_NAMES[1:])}")
    return tuple(dict.fromkeys(names))


def allocator_for(
    policy: str, inner: CoherentDma, guest: CoherentGuest, memory: ZonedAllocator
) -> CoherentAllocator:
    """The allocator of a policy; `inner` is the kernel's over the same memory."""
    name, limit = _settings(policy)
    store = _STORES.get(name)
    return inner if store is None else StoreAllocator(inner, store(guest, memory, limit), guest)


def _settings(policy: str) -> tuple[str, int]:
    name, _, value = policy.partition("=")
    if name not in POLICY_NAMES or (value and name != "pool-small"):
        raise InputError(
            f"policy {policy!r}: no such policy; use all, {', '.join(POLICY_NAMES[1:])} or "
            f"pool-small=PAGES"
        )
    if not value:
        return name, SMALL_PAGES
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MAX_SMALL_PAGES):
        raise InputError(f"policy {policy!r}: PAGES is a number from 1 to {MAX_SMALL_PAGES}")
    return name, int(value)
