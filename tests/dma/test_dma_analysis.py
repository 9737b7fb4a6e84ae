# SPDX-License-Identifier: GPL-2.0-or-later
"""The analysis against what can be counted by hand or by brute force."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st
from recorded import NAMES, dma_lines, trace_path

from guestemu.dma.analysis import Analysis
from guestemu.dma.cost import FLUSH_CEILING, Conversion, Cost
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.leaves import DirectMap
from guestemu.dma.model import ModelRun
from guestemu.dma.patterns import parse_patterns, pattern_events
from guestemu.dma.report import DmaReport
from guestemu.dma.series import MAX_BUCKETS, Series
from guestemu.dma.sharing import SharedPages, count_runs
from guestemu.dma.source import open_trace
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL

ATOMIC = {"GFP_ATOMIC", "GFP_NOWAIT"}


def report_of(events: list[Event], generation: str = "6.1", memory: int = 64) -> DmaReport:
    run = ModelRun(generation, memory)
    for event in events:
        run.step(event)
    return run.report()


def analysis_of(events: list[Event], generation: str = "6.1") -> Analysis:
    analysis = report_of(events, generation).analysis
    assert analysis is not None
    return analysis


def alloc(number: int, pages: int, time: int = 0, device: str = "d", driver: str = "v") -> Alloc:
    head = (number, time or number * 1000, 0, "t", device, driver)
    return Alloc(*head, number << 24, pages * 4096, GFP_KERNEL)


def free(number: int, pages: int, time: int, device: str = "d") -> Free:
    return Free(99, time, 0, "t", device, "v", number << 24, pages * 4096)


@pytest.mark.parametrize("name", NAMES)
def test_devices_drivers_and_phases_add_up(name: str) -> None:
    run = ModelRun("6.1", 64)
    with open_trace(trace_path(name)) as reader:
        for event in reader:
            run.step(event)
    report = run.report()
    analysis = report.analysis
    assert analysis is not None
    converted: Counter[str] = Counter()
    lines = dma_lines(name)
    pool = {line.address for line in lines if line.flags in ATOMIC}
    for line in lines:
        if line.address not in pool:
            converted[line.device] += -(-line.size // 4096)
    assert {k: cost.pages_converted for k, cost in analysis.by_device.items()} == {
        k: converted[k] for k in report.by_device
    }
    for parts in (analysis.by_device, analysis.by_driver, analysis.by_phase):
        total = Cost()
        for cost in parts.values():
            total.merge(cost)
        assert total == analysis.total
    assert analysis.total.hypercalls == report.hypercalls
    assert analysis.shared.at_end == analysis.fragmentation.shared_pages
    assert sum(leak.pages for leak in report.leaks) == report.live_pages_at_end
    assert sum(times.count for times in report.lifetimes_by_device.values()) == len(
        [line for line in lines if line.verb == "free"]
    )


def test_flushes_by_page_up_to_the_ceiling() -> None:
    analysis = analysis_of([alloc(1, FLUSH_CEILING), alloc(2, FLUSH_CEILING + 1)])
    assert analysis.total.tlb_pages == 2 * FLUSH_CEILING
    assert analysis.total.tlb_flushes == 2 + analysis.total.splits
    assert analysis.total.cache_bytes == (2 * FLUSH_CEILING + 1) * 4096


def test_the_tail_of_a_block_is_never_cleared_by_5_10() -> None:
    assert analysis_of([alloc(1, 3)], "5.10").total.never_cleared_pages == 1
    assert analysis_of([alloc(1, 3)], "5.10").total.exposed_pages == 4
    assert analysis_of([alloc(1, 3)]).total.never_cleared_pages == 0


def test_what_a_split_costs_later() -> None:
    small = [alloc(1, 1), free(1, 1, 2000)]
    report = report_of([alloc(2, 512), *small], memory=32)
    assert report.analysis is not None
    assert (report.analysis.total.calls_2m, report.analysis.total.extra_calls) == (1, 0)
    direct = DirectMap(2048)
    cost = Cost()
    for gfn, pages, private in ((600, 1, False), (600, 1, True), (512, 512, False)):
        cost.add(direct.convert(gfn, pages, private))
    assert (cost.calls_4k, cost.extra_calls, cost.splits) == (514, 511, 1)


def test_a_split_leaf_that_is_private_again_is_not_needed() -> None:
    first, second = alloc(1, 256), alloc(2, 256)  # the atomic pool shares the first one's leaf
    analysis = analysis_of([first, second, free(2, 256, 9000)])
    assert (analysis.total.splits, analysis.splits_unneeded) == (1, 1)
    assert analysis_of([first, second, free(1, 256, 9000)]).splits_unneeded == 0


def test_leaks_are_told_by_device_and_phase() -> None:
    events = [alloc(1, 2), Mark(2, 1500, 0, "t", "up"), alloc(3, 4), alloc(4, 1), free(4, 1, 9000)]
    report = report_of(events)
    assert [(leak.phase, leak.buffers, leak.pages, leak.line) for leak in report.leaks] == [
        ("start", 1, 2, 1),
        ("up", 1, 4, 3),
    ]
    assert report.orders_by_device == {"d": {0: 1, 1: 1, 2: 1}}
    assert report.lifetime_buckets == {4096: 1}


def test_a_pool_allocation_costs_nothing() -> None:
    event = Alloc(1, 1, 0, "t", "d", "v", 1 << 24, 4096, GFP_ATOMIC)
    analysis = analysis_of([event])
    assert analysis.total == Cost()
    assert analysis.by_device == {"d": Cost()}
    assert analysis.pools.pages_decrypted == analysis.shared.peak >= 32


conversions = st.lists(st.tuples(st.integers(0, 2040), st.integers(1, 600), st.booleans()))


@given(conversions)
def test_the_shared_set_equals_brute_force(calls: list[tuple[int, int, bool]]) -> None:
    private = bitarray(2048)
    private.setall(True)
    pages = SharedPages(private)
    flips = [0] * 2048
    peak_runs = peak_ranges = 0
    for gfn, wanted, to_private in calls:
        count = min(wanted, 2048 - gfn)
        changed = count - private.count(to_private, gfn, gfn + count)
        private[gfn : gfn + count] = to_private
        for page in range(gfn, gfn + count):
            flips[page] += 1
        pages.update(Conversion(gfn, count, to_private, changed, changed, 0, 0, 0, 0))
        text = "".join("x" if bit else "s" for bit in private)
        runs = len([part for part in text.split("x") if part])
        ranges = sum("s" in text[start : start + 512] for start in range(0, 2048, 512))
        peak_runs, peak_ranges = max(peak_runs, runs), max(peak_ranges, ranges)
        spread = pages.fragmentation()
        assert (spread.runs, spread.ranges) == (runs, ranges)
        assert spread.shared_pages == text.count("s")
        assert count_runs(private) == runs
    spread, churn = pages.fragmentation(), pages.churn()
    assert (spread.peak_runs, spread.peak_ranges) == (peak_runs, peak_ranges)
    assert churn.busiest_conversions == max(flips)
    if churn.busiest_gfn is not None:
        assert flips[churn.busiest_gfn] == max(flips)
    buckets = Counter(1 << flip.bit_length() - 1 for flip in flips if flip)
    assert churn.pages_by_conversions == dict(sorted(buckets.items()))


def test_the_map_of_a_large_memory_has_few_cells() -> None:
    private = bitarray(1 << 28)
    private.setall(True)
    pages = SharedPages(private)
    for gfn in (0, 5 << 20, (1 << 28) - 512):
        private[gfn : gfn + 512] = False
        pages.update(Conversion(gfn, 512, False, 512, 1, 0, 1, 0, 0))
    cells = pages.address_map()
    assert len(cells) == 4096
    assert sum(cell.pages for cell in cells) == 1 << 28
    touched = {cell.gfn: (cell.shared, cell.conversions) for cell in cells if cell.conversions}
    assert touched == {0: (512, 1), 5 << 20: (512, 1), (1 << 28) - (1 << 16): (512, 1)}


def test_a_series_keeps_peak_and_mean_in_bounded_memory() -> None:
    rng = random.Random(1)
    series = Series()
    now, level, area, peak, start = 10_000, 0, 0, 0, 10_000
    seen = []
    for _ in range(5000):
        step = rng.randrange(5000)
        area += level * step
        now += step
        level = rng.randrange(1000)
        peak = max(peak, level)
        series.record(now, level)
        seen.append((now, level))
    span = now - start
    first = series.buckets()[0].time_ns
    assert series.peak == peak == max(bucket.highest for bucket in series.buckets())
    assert series.mean == pytest.approx(area / (span - (first - start)))
    assert series.buckets()[-1].last == level
    assert MAX_BUCKETS // 2 <= len(series.buckets()) <= MAX_BUCKETS + 1
    times = [bucket.time_ns for bucket in series.buckets()]
    assert times == sorted(set(times))
    for bucket, end in zip(series.buckets(), [*times[1:], now + 1], strict=True):
        levels = [level for time, level in seen if bucket.time_ns <= time < end]
        assert (bucket.highest, bucket.last) == (max(levels), levels[-1])


@pytest.mark.parametrize(("generation", "is_told"), [("5.10", False), ("6.1", True)])
def test_the_analysis_counts_the_hypercalls_of_the_run(generation: str, is_told: bool) -> None:
    run = ModelRun(generation, 64)
    run.steps(pattern_events(parse_patterns("nvme:scenario=unbind+ahci")))
    calls = run.report().hypercalls
    assert run.analyze().total.hypercalls == calls
    assert (calls or 0) > 0 if is_told else calls == 0
