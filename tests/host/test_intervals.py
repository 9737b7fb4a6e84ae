# SPDX-License-Identifier: GPL-2.0-or-later
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.host.intervals import IntervalSet

RANGE = st.tuples(st.integers(0, 40), st.integers(0, 12))
OPERATIONS = st.lists(st.tuples(st.booleans(), RANGE), max_size=12)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, RANGE)
def test_agrees_with_a_set_and_stays_minimal(operations, window):
    intervals, wanted = IntervalSet(), set()
    for is_add, (start, length) in operations:
        (intervals.add if is_add else intervals.remove)(start, start + length)
        pages = range(start, start + length)
        wanted = wanted.union(pages) if is_add else wanted.difference(pages)
    assert [value in intervals for value in range(-1, 60)] == [v in wanted for v in range(-1, 60)]
    first, last = window[0], window[0] + window[1]
    inside = [v for start, end in intervals.within(first, last) for v in range(start, end)]
    assert inside == sorted(wanted.intersection(range(first, last)))
    runs = sum(1 for value in wanted if value - 1 not in wanted)
    assert len(intervals) == runs


def test_length_costs_nothing():
    intervals = IntervalSet()
    intervals.add(0, 1 << 64)
    intervals.remove(5, 6)
    assert len(intervals) == 2
    assert (1 << 63) in intervals
    assert 5 not in intervals
