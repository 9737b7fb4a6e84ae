# SPDX-License-Identifier: GPL-2.0-or-later
"""Coherent buffers out of a contiguous memory area, and pages that others share."""

from __future__ import annotations

import pytest
from coherent_guest import RecordingGuest
from hypothesis import given
from hypothesis import strategies as st

from guestemu.abi.addresses import Gfn
from guestemu.abi.errors import InputError
from guestemu.dma.events import Alloc, Event, Free
from guestemu.dma.model import ModelRun
from guestemu.dma.run import RunOptions
from guestemu.guest.dma.cma import CmaArea
from guestemu.guest.dma.coherent import AllocOutcome, CoherentDma, Origin
from guestemu.guest.dma.policy import policy_named
from guestemu.guest.dma.zones import ZonedAllocator

FIRST = 4096
PAGES = 1024


def dma(policy: str, guest: RecordingGuest, cma_pages: int = PAGES) -> CoherentDma:
    memory = ZonedAllocator(Gfn(FIRST), 8 * PAGES)
    return CoherentDma(guest, memory, policy_named(policy), cma_pages=cma_pages)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_runs_are_first_fit_aligned_and_never_overlap(steps: list[tuple[bool, int]]) -> None:
    first, pages = 4093, 128
    area = CmaArea(Gfn(first), pages)
    taken: dict[int, int] = {}
    for is_alloc, number in steps:
        if not is_alloc:
            if taken:
                gfn = sorted(taken)[number % len(taken)]
                assert area.free(Gfn(gfn))
                del taken[gfn]
            continue
        used = {gfn + page for gfn, held in taken.items() for page in range(held)}
        align = 1 << (number - 1).bit_length()
        fits = [
            gfn
            for gfn in range(first, first + pages - number + 1)
            if gfn % align == 0 and used.isdisjoint(range(gfn, gfn + number))
        ]
        found = area.allocate(number)
        assert found == (fits[0] if fits else None)
        if found is not None:
            taken[found] = number
    assert area.free_pages == pages - sum(taken.values())
    assert not area.free(Gfn(first - 1))


def test_a_large_run_is_aligned_to_256_pages_only() -> None:
    """CONFIG_CMA_ALIGNMENT caps the alignment (B12)."""
    area = CmaArea(Gfn(FIRST), 2048)
    assert area.allocate(1) == FIRST
    assert area.allocate(600) == FIRST + 256


def test_since_5_15_a_buffer_holds_and_converts_its_pages_only() -> None:
    guest = RecordingGuest()
    allocator = dma("6.1", guest)
    buffers = [allocator.alloc(3 * 4096).buffer for _ in range(2)]
    assert all(buffer is not None and buffer.block_pages == 3 for buffer in buffers)
    assert allocator.pages_beyond == 0
    assert len(guest.shared) == 6


def test_5_10_converts_pages_that_are_not_the_buffers() -> None:
    """It rounds to an order what CMA does not round (B5): its free takes a neighbour's page."""
    allocator = dma("5.10", guest := RecordingGuest())
    first = allocator.alloc(3 * 4096).buffer
    second = allocator.alloc(4096 + 1).buffer
    assert first is not None
    assert second is not None
    assert allocator.pages_beyond == 1
    guest.log.clear()
    allocator.free(first.gfn)
    assert guest.log == [("encrypt", first.gfn, 4)]


def test_one_page_and_what_does_not_fit_come_from_the_page_allocator() -> None:
    allocator = dma("6.1", RecordingGuest())
    inside = allocator.alloc(1000 * 4096).buffer
    small = allocator.alloc(4096).buffer
    other = allocator.alloc(100 * 4096).buffer
    assert inside is not None
    assert small is not None
    assert other is not None
    assert (inside.block_pages, small.block_pages, other.block_pages) == (1000, 1, 128)
    assert not set(range(inside.gfn, inside.gfn + 1000)) & {small.gfn, other.gfn}
    allocator.free(inside.gfn)
    assert allocator.alloc(1024 * 4096).outcome is AllocOutcome.CONVERTED


def test_a_device_that_does_not_reach_the_area_gets_other_memory() -> None:
    memory = ZonedAllocator(Gfn(16), 8 * PAGES)
    allocator = CoherentDma(RecordingGuest(), memory, policy_named("6.1"), cma_pages=PAGES)
    below_16_mib = allocator.alloc(2 * 4096, mask=(1 << 24) - 1).buffer
    assert below_16_mib is not None
    assert below_16_mib.gfn < 4096


def test_an_area_larger_than_memory_is_refused() -> None:
    with pytest.raises(InputError, match="cma of 36 MiB"):
        dma("6.1", RecordingGuest(), 9 * PAGES)


def events(origin: Origin) -> list[Event]:
    return [
        Alloc(1, 0, 0, "t", "d", "", 1 << 24, 64 << 12, frozenset({"GFP_KERNEL"}), origin=origin),
        Free(2, 9, 0, "t", "d", "", 1 << 24, 64 << 12),
    ]


@pytest.mark.parametrize(
    ("generation", "origin", "never_cleared"),
    [
        ("6.1", Origin.DMA, 0),
        ("6.1", Origin.PAGES, 64),
        ("6.1", Origin.BOOT, 64),
        ("5.17", Origin.BOOT, 0),
        ("5.10", Origin.BOOT, 0),
    ],
)
def test_who_clears_after_sharing(generation: str, origin: Origin, never_cleared: int) -> None:
    """swiotlb is cleared before its decryption since 6.1 (A.9)."""
    run = ModelRun(generation, 64)
    run.steps(events(origin)[:1])
    total = run.analyze().total
    assert (total.pages_decrypted, total.never_cleared_pages) == (64, never_cleared)


def test_a_run_with_cma_counts_what_lies_beyond() -> None:
    sizes = [3 * 4096] * 5
    allocations = [
        Alloc(n, 0, 0, "t", "d", "", n << 24, size, frozenset({"GFP_KERNEL"}))
        for n, size in enumerate(sizes, 1)
    ]
    for generation, beyond in (("5.10", 5), ("6.1", 0)):
        run = ModelRun(generation, 64, options=RunOptions(cma=4))
        run.steps(allocations)
        requested = run.report().requested
        assert requested is not None
        assert requested.pages_beyond == beyond
