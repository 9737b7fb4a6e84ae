# SPDX-License-Identifier: GPL-2.0-or-later
"""Timing: rounds, medians, ratios and units, on a clock that the test moves."""

import pytest

from guestemu.bench import figure
from guestemu.bench.figure import Pair, Work, measure, repetitions, summarize


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(figure.time, "process_time", lambda: now[0])
    return now


def takes(clock: list[float], seconds: float) -> Work:
    def work(count: int) -> None:
        clock[0] += seconds * count

    return work


def test_a_slower_path_shows_in_value_and_ratio(clock) -> None:
    fast = Pair(takes(clock, 4e-6), takes(clock, 1e-6), "floor")
    slow = Pair(takes(clock, 12e-6), takes(clock, 1e-6), "floor")
    first, second = measure({"fast": fast, "slow": slow}, rounds=3)
    assert (first.value, first.floor, first.ratio) == pytest.approx((4, 1, 4))
    assert (second.value, second.floor, second.ratio) == pytest.approx((12, 1, 12))


def test_rates_count_items_and_ratios_still_grow_with_cost(clock) -> None:
    pair = Pair(takes(clock, 1e-3), takes(clock, 1e-3), "floor", "/s", items=100, floor_items=500)
    (found,) = measure({"rate": pair}, rounds=1)
    assert (found.value, found.floor, found.ratio) == pytest.approx((1e5, 5e5, 5))


def test_rounds_are_interleaved(clock) -> None:
    order: list[str] = []

    def named(name: str) -> Work:
        def work(count: int) -> None:
            order.append(name)
            clock[0] += 1e-3 * count

        return work

    pairs = {
        "a": Pair(named("a"), named("fa"), ""),
        "b": Pair(named("b"), named("fb"), ""),
    }
    rounds: list[int] = []
    list(measure(pairs, 2, 1e-3, rounds.append))
    assert order[-8:] == ["a", "fa", "b", "fb"] * 2
    assert rounds == [0, 1]


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    pair = Pair(lambda n: None, lambda n: None, "floor")
    times = [(2e-6, 1e-6), (20e-6, 10e-6), (6e-6, 1e-6)]
    found = summarize("x", pair, times)
    assert found.value == pytest.approx(6)
    assert found.ratio == pytest.approx(2)


def test_without_a_floor_there_is_no_ratio_and_a_note(clock) -> None:
    pair = Pair(takes(clock, 1e-6), None, "C", note="floor unavailable: no compiler")
    (found,) = measure({"x": pair}, rounds=2)
    assert found.value == pytest.approx(1)
    assert (found.floor, found.ratio) == (None, None)
    assert found.note == "floor unavailable: no compiler"


def test_without_work_there_is_no_value() -> None:
    (found,) = measure({"x": Pair(None, None, "C", note="why")}, rounds=2)
    assert (found.value, found.floor, found.ratio, found.note) == (None, None, None, "why")


@pytest.mark.parametrize("cost", [1e-7, 1e-4, 0.5])
def test_a_turn_takes_the_time_asked_for(clock, cost) -> None:
    count = repetitions(takes(clock, cost), 0.02)
    assert count == max(1, int(0.02 / cost)) or count * cost == pytest.approx(0.02, rel=0.01)
