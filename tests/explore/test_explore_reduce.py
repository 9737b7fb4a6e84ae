# SPDX-License-Identifier: GPL-2.0-or-later
"""Partial-order reduction gives the verdicts of the full exploration from fewer states."""

from __future__ import annotations

from explore_strategies import scenarios
from hypothesis import given, settings
from published import cells

from guestemu.explore.count import Space
from guestemu.explore.model import Scenario
from guestemu.explore.notation import parse_order, parse_script
from guestemu.explore.reduce import reduce


def test_the_36_verdicts_from_a_fifth_of_the_states() -> None:
    states = reduced = 0
    for scenario in cells():
        space, reduction = Space(scenario), reduce(scenario)
        assert reduction.lost_strict == (space.tally.lost_strict > 0)
        assert reduction.lost_defined == (space.tally.lost_defined > 0)
        states += space.states
        reduced += reduction.states
    assert states >= 5 * reduced > 0


@settings(max_examples=400, deadline=None)
@given(scenarios())
def test_the_verdicts_hold_for_any_script_order_and_rules(scenario: Scenario) -> None:
    tally, reduction = Space(scenario).tally, reduce(scenario)
    assert reduction.lost_strict == (tally.lost_strict > 0)
    assert reduction.lost_defined == (tally.lost_defined > 0)


def test_flips_alone_need_no_branch() -> None:
    """No host step reads the PTE, so one interleaving stands for all."""
    assert reduce(Scenario(parse_order("1"), parse_script("PTE- PTE+ PTE-"))).states == 0
