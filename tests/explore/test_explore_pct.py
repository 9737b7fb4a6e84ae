# SPDX-License-Identifier: GPL-2.0-or-later
"""Random interleavings by priorities."""

from __future__ import annotations

from random import Random

import pytest
from explore_strategies import scenarios
from hypothesis import given
from hypothesis import strategies as st
from walked import end_of

from guestemu.abi.errors import InputError
from guestemu.migration.model.notation import parse_order, parse_script
from guestemu.migration.model.order_model import Scenario, verdict
from guestemu.migration.model.pct import explore_random, schedule

CELL = Scenario(parse_order("2"), parse_script("S1"))


@given(scenarios(), st.integers(1, 4), st.integers())
def test_a_schedule_is_an_interleaving_with_its_verdict(
    scenario: Scenario, depth: int, seed: int
) -> None:
    interleaving, found = schedule(scenario, min(depth, scenario.steps), Random(seed))
    assert sum(interleaving) == len(scenario.script.steps)
    assert verdict(scenario, end_of(scenario, interleaving)) == found


def test_depth_one_runs_one_side_to_its_end_first() -> None:
    result = explore_random(CELL, 50, 1, 0)
    assert (result.distinct, result.total) == (2, 120)
    assert result.lost_strict == 0


def test_a_loss_of_depth_three_is_found_with_the_promised_number_of_runs() -> None:
    """S1 under order 2 needs E before HC and the write before D: two changes of side."""
    result = explore_random(CELL, 2000, 3, 1)
    assert result.miss_bound < 0.001
    assert result.lost_strict > 0
    assert result.first is not None
    assert verdict(CELL, end_of(CELL, result.first)).lost_strict


def test_the_same_seed_gives_the_same_result() -> None:
    assert explore_random(CELL, 100, 3, 7) == explore_random(CELL, 100, 3, 7)
    assert explore_random(CELL, 100, 3, 7) != explore_random(CELL, 100, 3, 8)


def test_more_runs_leave_less() -> None:
    few, many = (explore_random(CELL, runs, 3, 0) for runs in (20, 2000))
    assert few.new_chance > many.new_chance
    assert few.miss_bound > many.miss_bound
    assert few.miss_bound == pytest.approx((1 - 1 / (2 * 10**2)) ** 20)


def test_ctrl_c_keeps_what_was_found() -> None:
    left = iter(range(10))

    def interrupt() -> None:
        if next(left) == 9:
            raise KeyboardInterrupt

    result = explore_random(CELL, 1000, 3, 0, interrupt)
    assert result.is_interrupted
    assert result.runs == 10


@pytest.mark.parametrize("depth", [0, 11])
def test_a_depth_without_room_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=f"--depth {depth}: an interleaving of 10 steps"):
        explore_random(CELL, 10, depth, 0)
