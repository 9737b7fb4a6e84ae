# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from guestemu.abi.addresses import Gfn
from guestemu.guest.dma.allocator import MAX_PAGE_ORDER, Block, BuddyAllocator, FreeResult
from guestemu.guest.dma.zones import Zone, ZonedAllocator


class Buddy(RuleBasedStateMachine):
    """The allocator against a plain set of frames."""

    blocks = Bundle("blocks")

    @initialize(first=st.integers(0, 5000), frames=st.integers(0, 5000))
    def start(self, first: int, frames: int) -> None:
        self.first, self.frames = first, frames
        self.buddy = BuddyAllocator(Gfn(first), frames)
        self.untouched = self.buddy.free_blocks()
        self.held: dict[int, Block] = {}

    @rule(
        target=blocks, order=st.integers(0, MAX_PAGE_ORDER), below=st.none() | st.integers(0, 9000)
    )
    def allocate(self, order: int, below: int | None) -> object:
        block = self.buddy.allocate(order, below)
        end = self.first + self.frames if below is None else below
        if block is None:
            assert not self._is_free_run(order, end)
            return multiple()
        assert block.order == order
        assert block.gfn + block.pages <= end
        assert block.gfn not in self.held
        self.held[block.gfn] = block
        return block

    def _is_free_run(self, order: int, end: int) -> bool:
        """Whether a free, aligned run below `end` exists, in plain search over all frames."""
        taken = {
            gfn for block in self.held.values() for gfn in range(block.gfn, block.gfn + block.pages)
        }
        size = 1 << order
        start = -(-self.first // size) * size
        limit = min(end, self.first + self.frames)
        return any(
            not any(gfn in taken for gfn in range(run, run + size))
            for run in range(start, limit - size + 1, size)
        )

    @rule(block=consumes(blocks))
    def free(self, block: Block) -> None:
        assert self.buddy.free(block.gfn) is FreeResult.FREED
        del self.held[block.gfn]
        assert self.buddy.free(block.gfn) is FreeResult.DOUBLE_FREE

    @rule(gfn=st.integers(0, 11000))
    def free_wrong(self, gfn: int) -> None:
        if gfn in self.held:
            return
        is_ours = self.first <= gfn < self.first + self.frames
        is_held = any(b.gfn <= gfn < b.gfn + b.pages for b in self.held.values())
        expected = FreeResult.DOUBLE_FREE if is_ours and not is_held else FreeResult.NOT_A_BLOCK
        assert self.buddy.free(Gfn(gfn)) is expected

    @invariant()
    def every_frame_is_in_one_aligned_block(self) -> None:
        assert self.buddy.allocated_blocks() == [self.held[gfn] for gfn in sorted(self.held)]
        blocks = sorted(
            self.buddy.free_blocks() + self.buddy.allocated_blocks(), key=lambda b: b.gfn
        )
        position = self.first
        for block in blocks:
            assert block.gfn == position
            assert block.gfn % block.pages == 0
            position += block.pages
        assert position == self.first + self.frames
        assert self.buddy.free_pages == sum(block.pages for block in self.buddy.free_blocks())

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        for gfn in list(self.held):
            assert self.buddy.free(Gfn(gfn)) is FreeResult.FREED
        assert self.buddy.free_blocks() == self.untouched


TestBuddy = Buddy.TestCase
TestBuddy.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_the_lowest_fitting_block_is_taken() -> None:
    buddy = BuddyAllocator(Gfn(0), 1024)
    taken = [buddy.allocate(order) for order in (0, 0, 2, 1)]
    assert [block.gfn for block in taken if block] == [0, 1, 4, 2]
    buddy.free(Gfn(1))
    again = buddy.allocate(0)
    assert again is not None
    assert again.gfn == 1


def test_an_order_above_the_largest_is_refused() -> None:
    assert BuddyAllocator(Gfn(0), 1 << 14).allocate(MAX_PAGE_ORDER + 1) is None


def test_a_negative_range_is_refused() -> None:
    with pytest.raises(ValueError, match="no such frames"):
        BuddyAllocator(Gfn(0), -1)


def test_long_use_does_not_grow_the_free_lists() -> None:
    buddy = BuddyAllocator(Gfn(0), 64)
    for _ in range(5000):
        blocks = [buddy.allocate(order) for order in (0, 3, 0, 1)]
        for block in blocks:
            assert block is not None
            buddy.free(block.gfn)
    assert sum(map(len, buddy._heaps)) < 1000
    assert buddy.free_blocks() == [Block(Gfn(0), 6)]


def test_zones_are_taken_from_above_and_masks_are_obeyed() -> None:
    sixteen_mib, four_gib = 1 << 12, 1 << 20
    memory = ZonedAllocator(Gfn(0), four_gib + 1024)
    any_block = memory.allocate(10)
    assert any_block is not None
    assert any_block.gfn == four_gib
    fallback = memory.allocate(0)
    assert fallback is not None
    assert fallback.gfn == sixteen_mib
    low = memory.allocate(0, mask=(1 << 24) - 1)
    assert low is not None
    assert low.gfn == 0
    odd = memory.allocate(0, mask=(1 << 20) - 1)
    assert odd is not None
    assert odd.gfn < 256
    assert memory.allocate(0, mask=4095 >> 1) is None
    for block in memory.allocated_blocks():
        assert memory.free(block.gfn) is FreeResult.FREED
    assert memory.free_pages == memory.frames


def test_a_guest_without_low_memory_has_no_dma_zone() -> None:
    memory = ZonedAllocator(Gfn(1 << 13), 512)
    assert not memory.has(Zone.DMA)
    assert not memory.has(Zone.NORMAL)
    assert memory.allocate(0, mask=(1 << 24) - 1) is None
    assert memory.free(Gfn(0)) is FreeResult.NOT_A_BLOCK
