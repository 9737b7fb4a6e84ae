# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration over a run equals one that looks at every page at its moment."""

from __future__ import annotations

import pytest
from bitarray import bitarray
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.errors import InputError
from guestemu.dma.cost import Conversion
from guestemu.dma.events import Mark
from guestemu.dma.migration import MigrationObserver, MigrationPlan, SentBy, parse_plan

FRAMES = 64
RATE = 1
PAGE_NS = 1_000_000_000 // 256
"""1 MiB/s: a page takes 3.90625 ms, which is a whole number of ns."""

Step = tuple[int, int, int, bool, bool]
"""Time, first frame, pages, to private, cleared."""
STEPS = st.lists(
    st.tuples(
        st.integers(0, 4 * FRAMES * PAGE_NS),
        st.integers(0, FRAMES - 1),
        st.integers(1, 8),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
).map(sorted)


def observed(steps: list[Step], plan: MigrationPlan, source: SentBy) -> MigrationObserver:
    private = bitarray(FRAMES, endian="little")
    private.setall(1)
    observer = MigrationObserver(private, plan, source)
    observer.begin(Mark(1, 0, 0, "t", "start"))
    for line, (time_ns, first, pages, to_private, is_cleared) in enumerate(steps, 2):
        end = min(FRAMES, first + pages)
        observer.begin(Mark(line, time_ns, 0, "t", "step"))
        changed = end - first - private.count(to_private, first, end)
        private[first:end] = to_private
        observer.converted(
            Conversion(first, end - first, to_private, changed, changed, 0, 0, 0, 0), False
        )
        if is_cleared:
            observer.cleared(first, (end - first) * 4096)
    return observer


def brute_force(steps: list[Step], plan: MigrationPlan, source: SentBy) -> tuple[list[int], ...]:
    """Page after page; a step counts after the page whose sending ends at its moment."""
    live = [1] * FRAMES
    dirty = [True] * FRAMES
    way: dict[int, int] = {}
    wrong_since: dict[int, int] = {}
    todo = list(steps)
    now = plan.at_ns
    area = peak = 0
    passes: list[list[int]] = []

    def guest(until: int) -> None:
        while todo and todo[0][0] < until:
            _, first, pages, to_private, is_cleared = todo.pop(0)
            for page in range(first, min(FRAMES, first + pages)):
                live[page] = int(to_private)
                dirty[page] = dirty[page] or is_cleared

    while True:
        guest(now)
        is_last = bool(passes) and (sum(dirty) <= plan.stop or len(passes) == plan.passes)
        log = [page for page in range(FRAMES) if dirty[page]]
        dirty[:] = [False] * FRAMES
        copied = list(live)
        sums = [len(log), 0, 0]
        for page in log:
            now += PAGE_NS
            if not is_last:
                guest(now)
            sent_as = copied[page] if source is SentBy.COPIED else live[page]
            sums[1] += page in way
            way[page] = sent_as
            if page in wrong_since:
                area += now - wrong_since.pop(page)
            if sent_as != live[page]:
                sums[2] += 1
                wrong_since[page] = now
            peak = max(peak, len(wrong_since))
        passes.append(sums)
        if is_last:
            break
    area += sum(now - since for since in wrong_since.values())
    changed = sum(way[page] != live[page] for page in way)
    return (*passes, [peak, area, len(wrong_since), changed])


@settings(max_examples=150, deadline=None)
@given(
    STEPS,
    st.builds(
        MigrationPlan,
        at_ns=st.just(0) | st.integers(0, FRAMES * PAGE_NS),
        rate=st.just(RATE),
        passes=st.integers(1, 5),
        stop=st.sampled_from([0, 4, FRAMES]),
    ),
    st.sampled_from(SentBy),
)
def test_passes_equal_brute_force(steps: list[Step], plan: MigrationPlan, source: SentBy) -> None:
    last = (10 * FRAMES * PAGE_NS, 0, 1, True, False)
    done = observed([*steps, last], plan, source).finish()
    *passes, ending = brute_force([*steps, last], plan, source)
    assert [[p.sent, p.resent, p.wrong_way] for p in done.passes] == passes
    assert done.wrong_page_seconds == pytest.approx(ending[1] / 1e9)
    assert [done.wrong_at_end, done.changed_since_sent] == ending[2:]
    assert done.blackout_pages == passes[-1][0]


def test_a_page_that_changes_between_copy_and_sending_is_sent_the_wrong_way() -> None:
    steps = [(10 * PAGE_NS + 1, 40, 2, False, True), (1_000_000_000, 0, 1, True, False)]
    plan = MigrationPlan(rate=RATE, stop=0)
    copied = observed(steps, plan, SentBy.COPIED).finish()
    assert [(p.sent, p.wrong_way) for p in copied.passes] == [(FRAMES, 2), (2, 0), (0, 0)]
    assert copied.wrong_at_end == copied.changed_since_sent == 0
    assert copied.wrong_page_seconds == pytest.approx((2 * (FRAMES - 41) + 2 - 1 + 1 - 1 + 1) / 256)
    assert observed(steps, plan, SentBy.LIVE).finish().wrong_way == 0


def test_a_freed_page_is_never_sent_again() -> None:
    """The free makes it private and does not write it: no log names it (C6)."""
    steps = [(0, 3, 1, False, True), (20 * PAGE_NS, 3, 1, True, False)]
    steps.append((1_000_000_000, 0, 1, True, False))
    done = observed(steps, MigrationPlan(PAGE_NS, RATE), SentBy.LIVE).finish()
    assert done.changed_since_sent == 1
    assert done.resent == 0


def test_a_migration_after_the_end_has_not_begun() -> None:
    done = observed([(5, 3, 1, False, True)], MigrationPlan(at_ns=6), SentBy.LIVE).finish()
    assert not done.has_begun
    assert not done.passes


def test_a_plan_is_read() -> None:
    plan, sources = parse_plan("at=1.5,rate=100,passes=3,stop=9,status=live")
    assert plan == MigrationPlan(1_500_000_000, 100, 3, 9)
    assert sources == (SentBy.LIVE,)
    assert parse_plan("") == (MigrationPlan(), tuple(SentBy))


@pytest.mark.parametrize("text", ["at=x", "rate=0", "passes=1001", "stop=-1", "status=old", "x=1"])
def test_a_wrong_plan_is_named(text: str) -> None:
    with pytest.raises(InputError, match="migration"):
        parse_plan(text)
