# SPDX-License-Identifier: GPL-2.0-or-later
"""Partial-order reduction gives the verdicts of the full exploration from fewer states."""

from __future__ import annotations

from explore_strategies import scenarios
from hypothesis import given, settings
from published import cells

from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import parse_order, parse_rules, parse_script
from guestemu.migration.model.order_model import Scenario, State
from guestemu.migration.model.reduce import ReducedSearch, reduce


def ends_of(scenario: Scenario) -> set[State]:
    search = ReducedSearch(scenario)
    search.run()
    return search.ends


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


@settings(max_examples=400, deadline=None)
@given(scenarios())
def test_every_final_state_is_reached(scenario: Scenario) -> None:
    assert ends_of(scenario) == Space(scenario).ends


def test_what_the_destination_holds_matters_where_it_may_not_be_sent_again() -> None:
    """An order that sends before it fetches leaves a late write unsent."""
    for order in ("L D", "L G C", "D L D"):
        for rules in ([], ["starts-clean"], ["clear-is-unconditional"]):
            for script in ("t1! PTE- t2! HC-", "PTE- HC- t1! t2! HC+", "t1! t2! t1! PTE-"):
                scenario = Scenario(parse_order(order), parse_script(script), 2, parse_rules(rules))
                assert ends_of(scenario) == Space(scenario).ends


def test_flips_alone_need_no_branch() -> None:
    """No host step reads the PTE, so one interleaving stands for all."""
    assert reduce(Scenario(parse_order("1"), parse_script("PTE- PTE+ PTE-"))).states == 0
