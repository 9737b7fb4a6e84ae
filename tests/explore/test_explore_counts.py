# SPDX-License-Identifier: GPL-2.0-or-later
"""The counts of the order model: the published table and how it changes with each rule."""

from __future__ import annotations

import pytest
from explore_strategies import scenarios
from hypothesis import given, settings
from published import PUBLISHED, TABLE, cells, surviving, tallies
from walked import walk

from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import parse_order, parse_rules, parse_script
from guestemu.migration.model.order_model import Scenario, is_defined
from guestemu.migration.model.steps import SCRIPTS


def test_all_36_cells_are_those_of_the_table() -> None:
    found = tallies()
    assert len(found) == 36
    assert {cell: (t.lost_strict, t.total) for cell, t in found.items()} == TABLE


def test_lost_defined_is_lost_strict_except_in_s3_where_it_is_zero() -> None:
    for (_, script), tally in tallies().items():
        assert tally.lost_defined == (0 if script == "S3" else tally.lost_strict)


SURVIVORS = [
    ("starts-clean", 24),
    ("pte-sets-dirty", 22),
    ("hypercall-sets-dirty", 17),
    ("pte-sets-dirty hypercall-sets-dirty", 16),
    ("clear-is-unconditional", 18),
    ("snapshot-is-kept", 12),
    ("guest-ends-on-source", 0),
    ("final-reuses-status", 12),
    ("final-sends-always", 12),
    ("final-pass-is-missing", 0),
    ("plain-survives-private-send", 20),
    ("source-key-is-readable", 28),
    ("lost-only-if-stale", 12),
    ("compared-at-resume-only", 0),
    ("compared-at-resume-too", 0),
]


@pytest.mark.parametrize(("rules", "count"), SURVIVORS)
def test_so_many_cells_survive_another_choice_of_the_rules(rules: str, count: int) -> None:
    assert surviving(tallies(parse_rules(rules.split()))) == count


def test_so_many_cells_survive_content_that_is_undefined_after_a_flip_or_a_hypercall() -> None:
    assert surviving(tallies(), by_defined=True) == 30
    after_hypercall = tallies(parse_rules(["undefined-from-hypercall"]))
    assert surviving(after_hypercall, by_defined=True) == 18
    zero = {script for (_, script), tally in after_hypercall.items() if not tally.lost_defined}
    assert zero >= {"S3", "S1c", "S0"}


def test_readable_source_keys_empty_all_cells_of_s2_and_s3() -> None:
    found = tallies(parse_rules(["source-key-is-readable"]))
    assert all(not t.lost_strict for (_, script), t in found.items() if script in ("S2", "S3"))


@pytest.mark.parametrize("passes", [1, 3])
def test_other_numbers_of_passes_change_every_figure_but_not_which_cells_lose(passes: int) -> None:
    found = tallies(passes=passes)
    assert surviving(found) == 0
    assert all((t.lost_strict > 0) == (TABLE[cell][0] > 0) for cell, t in found.items())


def test_resending_pages_whose_status_changed_cures_the_net_changes() -> None:
    """Claim C6: at the end the status of S1c and S0 is another than the one sent with, unless it
    changes at the destination; there and back it is the same."""
    found = tallies(parse_rules(["final-resends-changed"]))
    plain = tallies()
    for row in range(1, 7):
        assert found[row, "S1"].lost_strict == 0
        assert found[row, "S1c"].lost_strict < plain[row, "S1c"].lost_strict
        assert found[row, "S3"].lost_strict > 0


def test_walking_every_interleaving_counts_the_same() -> None:
    for scenario in cells():
        assert walk(scenario) == Space(scenario).tally


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_states_and_enumeration_count_the_same_for_any_script_order_and_rules(
    scenario: Scenario,
) -> None:
    assert Space(scenario).tally == walk(scenario)


def test_a_long_migration_is_counted_exactly() -> None:
    space = Space(Scenario(parse_order("1"), parse_script("S1c"), 100))
    assert space.tally.total == 304 * 303 * 302 // 6
    assert 0 < space.tally.lost_strict < space.tally.total
    assert space.states < 10_000


@pytest.mark.parametrize(
    ("script", "defined"),
    [
        ("t1!", True),
        ("HC-", True),
        ("PTE+", True),
        ("PTE-", False),
        ("PTE- PTE+", False),
        ("PTE- t1! PTE-", True),
        ("PTE- t1! PTE+ HC+", False),
    ],
)
def test_content_is_undefined_from_a_change_of_the_c_bit_to_the_next_write(
    script: str, defined: bool
) -> None:
    assert is_defined(Scenario(parse_order("1"), parse_script(script))) == defined


def test_a_script_without_a_write_keeps_the_start_value() -> None:
    tally = Space(Scenario(parse_order("1"), parse_script("HC- HC+"), 2, PUBLISHED)).tally
    assert 0 < tally.lost_strict < tally.total
    assert Space(Scenario(parse_order("1"), parse_script("HC+"))).tally.lost_strict == 0


def test_two_writes_of_one_value_or_of_two_count_the_same() -> None:
    assert [script.name for script in SCRIPTS][-1] == "S0"
    same = Space(Scenario(parse_order("2"), parse_script("PTE- t1! t1! HC-"))).tally
    assert (same.lost_strict, same.total) == TABLE[2, "S0"]
