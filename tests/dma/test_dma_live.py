# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import NAMES, Line, dma_lines, trace_path

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.dma.account import Account
from guestemu.dma.anomalies import KEPT_PER_KIND, AnomalyKind
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.lifetimes import LifetimeHistogram
from guestemu.dma.live import FIRST_PHASE, Accountant
from guestemu.dma.source import open_trace
from guestemu.dma.synthetic import synthetic_events, trace_text
from guestemu.dma.trace import TraceReader
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL


def account_of(name: str) -> tuple[Account, Accountant]:
    accountant = Accountant()
    with open_trace(trace_path(name)) as reader:
        for event in reader:
            accountant.see(event)
    return accountant.result(), accountant


def pages(size: int) -> int:
    return -(-size // 4096)


def live_at(lines: list[Line], end: int) -> dict[int, Line]:
    """The buffers allocated after the first `end` lines, found from the start each time."""
    live: dict[int, Line] = {}
    for line in lines[:end]:
        if line.verb == "alloc":
            live[line.address] = line
        else:
            del live[line.address]
    return live


@pytest.mark.parametrize("name", NAMES)
def test_totals_equal_a_count_of_the_text(name: str) -> None:
    account, accountant = account_of(name)
    lines = dma_lines(name)
    allocs = [line for line in lines if line.verb == "alloc"]
    frees = [line for line in lines if line.verb == "free"]
    end = live_at(lines, len(lines))
    total = account.total
    assert total.allocations == len(allocs)
    assert total.frees == len(frees)
    assert total.unknown_frees == 0
    assert total.pages_requested == sum(pages(line.size) for line in allocs)
    assert total.pages_released == sum(pages(line.size) for line in frees)
    assert total.live_at_end == len(end)
    assert total.live_pages_at_end == sum(pages(line.size) for line in end.values())
    atomic = [line for line in allocs if line.flags in ("GFP_ATOMIC", "GFP_NOWAIT")]
    assert total.nonblocking == len(atomic)
    assert accountant.anomalies.counts == {}


@pytest.mark.parametrize("name", NAMES)
def test_peak_equals_the_largest_of_all_moments(name: str) -> None:
    account, _ = account_of(name)
    lines = dma_lines(name)
    peak = max(
        sum(pages(line.size) for line in live_at(lines, end).values())
        for end in range(len(lines) + 1)
    )
    assert account.total.peak_live_pages == peak


@pytest.mark.parametrize("name", NAMES)
def test_devices_equal_a_count_of_the_text(name: str) -> None:
    account, _ = account_of(name)
    lines = dma_lines(name)
    allocs = Counter(line.device for line in lines if line.verb == "alloc")
    frees = Counter(line.device for line in lines if line.verb == "free")
    assert {name: tally.allocations for name, tally in account.by_device.items()} == allocs
    assert {name: tally.frees for name, tally in account.by_device.items() if tally.frees} == frees
    for device, tally in account.by_device.items():
        own = [line for line in lines if line.device == device]
        assert tally.peak_live_pages == max(
            sum(pages(line.size) for line in live_at(own, end).values())
            for end in range(len(own) + 1)
        )


@pytest.mark.parametrize("name", NAMES)
def test_lifetimes_equal_a_search_for_each_free(name: str) -> None:
    account, _ = account_of(name)
    lines = dma_lines(name)
    times = []
    for index, line in enumerate(lines):
        if line.verb == "free":
            births = [old for old in lines[:index] if old.address == line.address]
            birth = [old for old in births if old.verb == "alloc"][-1]
            times.append((line.microseconds - birth.microseconds) * 1000)
    times.sort()
    lifetimes = account.lifetimes
    assert lifetimes.count == len(times)
    assert lifetimes.min_ns == times[0]
    assert lifetimes.max_ns == times[-1]
    assert lifetimes.median_ns == pytest.approx(times[math.ceil(len(times) / 2) - 1], rel=1e-3)
    assert lifetimes.p90_ns == pytest.approx(times[math.ceil(len(times) * 0.9) - 1], rel=1e-3)
    assert lifetimes.still_alive == account.total.live_at_end


def test_churn_phases_take_and_give_back_the_same_pages() -> None:
    account, _ = account_of("churn")
    for turn in range(1, 6):
        up, down = account.by_phase[f"up-{turn}"], account.by_phase[f"down-{turn}"]
        assert up.pages_requested == down.pages_released > 0
        assert up.frees == down.allocations == 0
        assert up.peak_live_pages == up.live_pages_at_end > down.live_pages_at_end
        assert down.peak_live_pages == up.live_pages_at_end
    assert FIRST_PHASE not in account.by_phase


def alloc(address: int, size: int = 4096, line: int = 1, device: str = "a") -> Alloc:
    return Alloc(line, line * 1000, 0, "t", device, "", address, size, GFP_KERNEL)


def free(address: int, size: int = 4096, line: int = 2, device: str = "a") -> Free:
    return Free(line, line * 1000, 0, "t", device, "", address, size)


def run(*events: Event, ram: int = 1 << 30, has_iommu: bool = False) -> tuple[Account, Accountant]:
    accountant = Accountant(ram, has_iommu)
    for event in events:
        accountant.see(event)
    return accountant.result(), accountant


def test_an_unknown_free_is_counted_and_releases_nothing() -> None:
    account, accountant = run(alloc(0x1000), free(0x1000), free(0x1000, line=3))
    assert (account.total.frees, account.total.unknown_frees) == (2, 1)
    assert account.total.pages_released == 1
    assert [anomaly.line for anomaly in accountant.anomalies.kept] == [3]


def test_a_reused_address_means_a_lost_free() -> None:
    account, accountant = run(alloc(0x4000, 3 * 4096), alloc(0x6000, line=2), alloc(0x5000, line=3))
    assert account.pages_lost == 3
    assert account.total.live_at_end == 2
    assert accountant.anomalies.counts == {AnomalyKind.OVERLAP: 1}
    assert "0x4000" in accountant.anomalies.kept[0].message


def test_one_allocation_can_show_several_lost_frees() -> None:
    small = [alloc(page * PAGE_SIZE, line=page) for page in (2, 4, 5, 9)]
    account, accountant = run(*small, alloc(2 * PAGE_SIZE, 4 * PAGE_SIZE, line=10))
    assert account.pages_lost == 3
    assert account.total.live_at_end == 2
    assert accountant.anomalies.counts == {AnomalyKind.OVERLAP: 3}


def test_with_an_iommu_devices_have_their_own_addresses() -> None:
    events = (alloc(0x1000), alloc(0x1000, line=2, device="b"), free(0x1000, line=3))
    account, accountant = run(*events, has_iommu=True)
    assert accountant.anomalies.counts == {}
    assert account.total.live_at_end == 1
    assert run(*events)[0].pages_lost == 1


def test_absurd_sizes_are_listed_and_claim_no_pages() -> None:
    account, accountant = run(alloc(0x1000, 0), alloc(0x2000, 1 << 40), free(0x1000, 0), alloc(0))
    assert accountant.anomalies.counts[AnomalyKind.ABSURD_SIZE] == 2
    assert account.total.pages_requested == 1
    assert account.total.unknown_frees == 0
    assert account.total.live_at_end == 2


def test_mismatching_frees_and_time_going_back_are_listed() -> None:
    account, accountant = run(alloc(0x1000, line=5), free(0x1000, 8192, line=2, device="b"))
    assert set(accountant.anomalies.counts) == {
        AnomalyKind.OUT_OF_ORDER,
        AnomalyKind.SIZE_MISMATCH,
        AnomalyKind.DEVICE_MISMATCH,
    }
    assert account.lifetimes.max_ns == 0
    assert account.by_device["a"].live_at_end == 0


def test_failed_allocations_and_null_frees_count_apart() -> None:
    failed = Alloc(1, 0, 0, "t", "a", "", 0, 4096, GFP_ATOMIC, has_failed=True)
    nothing = Free(2, 0, 0, "t", "a", "", 0, 4096, is_null=True)
    account, accountant = run(failed, nothing)
    assert (account.failed_allocations, account.null_frees) == (1, 1)
    assert account.total.allocations == account.total.frees == 0
    assert accountant.anomalies.counts == {}


def test_only_the_first_anomalies_of_a_kind_are_kept() -> None:
    _, accountant = run(*(free(0x1000, line=line) for line in range(100)))
    assert accountant.anomalies.counts[AnomalyKind.UNKNOWN_FREE] == 100
    assert len(accountant.anomalies.kept) == KEPT_PER_KIND


def test_a_phase_that_returns_goes_on() -> None:
    marks = [Mark(line, 0, 0, "t", name) for line, name in ((1, "x"), (3, "y"), (5, "x"))]
    account, _ = run(marks[0], alloc(0), marks[1], alloc(0x1000), marks[2], alloc(0x2000))
    assert account.by_phase["x"].allocations == 2
    assert account.by_phase["x"].live_pages_at_end == 3


page_ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6), st.booleans()), max_size=60)


@given(page_ranges)
def test_overlaps_equal_a_search_over_pages(steps: list[tuple[int, int, bool]]) -> None:
    accountant = Accountant()
    owner: dict[int, int] = {}
    live: dict[int, set[int]] = {}
    lost = 0
    for line, (page, count, is_alloc) in enumerate(steps):
        if not is_alloc:
            for old in live.pop(page, set()):
                del owner[old]
            accountant.see(free(page * PAGE_SIZE, line=line))
            continue
        claimed = set(range(page, page + count))
        victims = {owner[old] for old in claimed if old in owner} | ({page} & live.keys())
        for victim in victims:
            lost += len(live[victim])
            for old in live.pop(victim):
                del owner[old]
        live[page] = claimed
        owner |= dict.fromkeys(claimed, page)
        accountant.see(alloc(page * PAGE_SIZE, count * PAGE_SIZE, line))
    account = accountant.result()
    assert account.pages_lost == lost
    assert account.total.live_at_end == len(live)
    assert account.total.live_pages_at_end == len(owner)
    total = account.total
    assert total.pages_requested == total.pages_released + lost + total.live_pages_at_end


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_quantiles_are_at_most_a_thousandth_too_low(values: list[int]) -> None:
    histogram = LifetimeHistogram()
    for value in values:
        histogram.add(value)
    for percent in (1, 50, 90, 100):
        exact = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
        found = histogram.quantile(percent)
        assert found is not None
        assert exact * (1 - 1 / 1000) - 1 <= found <= exact


def test_no_lifetimes_give_no_figures() -> None:
    result = LifetimeHistogram().result(still_alive=4)
    assert (result.count, result.min_ns, result.median_ns, result.still_alive) == (0, None, None, 4)


def test_a_synthetic_trace_reads_back_as_it_was_made() -> None:
    made = list(synthetic_events(3000, seed=7, live=50))
    data = b"".join(trace_text(made))
    read = list(TraceReader(io.BytesIO(data)))
    heads = data.count(b"# PCI")
    assert len(read) == len(made)
    for mine, theirs in zip(made, read, strict=True):
        for field in set(mine.__struct_fields__) - {"line"}:
            assert getattr(mine, field) == getattr(theirs, field), field
    assert read[-1].line == made[-1].line + heads
    account, accountant = run(*made)
    assert accountant.anomalies.counts == {}
    assert account.total.allocations + account.total.frees == 3000
    assert account.total.frees > 1000
