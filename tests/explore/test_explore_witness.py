# SPDX-License-Identifier: GPL-2.0-or-later
"""Losing interleavings by number, their notation and what is said about them."""

from __future__ import annotations

import re

import pytest
from explore_strategies import scenarios
from hypothesis import given, settings
from walked import end_of, interleavings, rank_of

from guestemu.abi.errors import InputError
from guestemu.migration.model.count import Space
from guestemu.migration.model.explain import explain, last_send
from guestemu.migration.model.notation import parse_order, parse_rules, parse_script
from guestemu.migration.model.order_model import Form, Scenario, verdict
from guestemu.migration.model.steps import ORDERS, SCRIPTS
from guestemu.migration.model.witness import (
    PassStep,
    Stop,
    format_witness,
    replay,
    unrank,
    witnesses,
)

LOSING = {
    ("2", "S1"): [
        "PTE- E HC- t1! D S E D S STOP",
        "PTE- E D S E HC- t1! D S STOP",
        "E PTE- HC- t1! D S E D S STOP",
        "E PTE- D S E HC- t1! D S STOP",
        "E D PTE- S E HC- t1! D S STOP",
        "E D S PTE- E HC- t1! D S STOP",
        "E D S E PTE- HC- t1! D S STOP",
    ],
    ("2", "S1b"): ["E HC- PTE- t1! D S E D S STOP", "E D S E HC- PTE- t1! D S STOP"],
    ("3", "S1"): [
        "PTE- G E HC- t1! C S G E C S STOP",
        "G PTE- E HC- t1! C S G E C S STOP",
        "G E PTE- HC- t1! C S G E C S STOP",
    ],
    ("3", "S1b"): ["G E HC- PTE- t1! C S G E C S STOP"],
}


def space_of(order: str, script: str, passes: int = 2, *rules: str) -> Space:
    return Space(Scenario(parse_order(order), parse_script(script), passes, parse_rules(rules)))


@pytest.mark.parametrize("cell", LOSING)
def test_the_losing_interleavings_of_the_small_cells(cell: tuple[str, str]) -> None:
    assert [format_witness(witness) for witness in witnesses(space_of(*cell))] == LOSING[cell]


def test_ranks_follow_the_order_of_enumeration() -> None:
    space = space_of("5", "S3")
    scenario = space.scenario
    losing = [
        steps for steps in interleavings(scenario) if verdict(scenario, end_of(scenario, steps))[0]
    ]
    assert len(losing) == 110
    assert [replay(scenario, steps).moments for steps in losing] == [
        witness.moments for witness in witnesses(space)
    ]


@settings(max_examples=60, deadline=None)
@given(scenarios())
def test_every_rank_gives_a_losing_interleaving_of_that_rank(scenario: Scenario) -> None:
    space = Space(scenario)
    for by_defined in (False, True):
        count = space.tally.lost_defined if by_defined else space.tally.lost_strict
        for rank in {0, count // 2, count - 1} & set(range(count)):
            witness = unrank(space, rank, by_defined)
            assert witness.verdict[int(by_defined)]
            assert rank_of(space, witness, by_defined) == rank


@pytest.mark.parametrize(("script", "rank"), [("S1", 7), ("S1", -1), ("HC+", 0)])
def test_a_rank_that_is_none_is_refused(script: str, rank: int) -> None:
    with pytest.raises(InputError, match=rf"--witness {rank}: \d+ interleavings"):
        unrank(space_of("2", script), rank)


def test_a_huge_space_is_addressed_without_listing_it() -> None:
    space = space_of("2", "S2", 60)
    assert space.tally.lost_strict > 10**8
    witness = unrank(space, 10**8)
    assert witness.verdict.lost_strict
    assert rank_of(space, witness) == 10**8


def test_a_witness_has_its_steps_as_records() -> None:
    witness = unrank(space_of("2", "S1"), 1)
    host = [moment.step for moment in witness.moments if isinstance(moment.step, PassStep)]
    assert [step.number for step in host] == [1, 1, 1, 2, 2, 2]
    assert isinstance(witness.moments[-1].step, Stop)
    assert witness.moments[-1].before.source.form is Form.PLAIN


def test_no_loss_is_old_content_it_is_the_last_value_in_the_wrong_mode() -> None:
    """Stated for the table: plain bytes sent private, and where the page ends private, E_s bytes
    sent plain."""
    for order in ORDERS:
        for script in SCRIPTS:
            space = Space(Scenario(order, script))
            token = 2 if script.name in ("S2", "S0") else 1
            ends_private = script.name in ("S2", "S3")
            for witness in witnesses(space):
                sent = last_send(witness)
                assert sent is not None
                form = Form.SOURCE_KEY if ends_private else Form.PLAIN
                assert sent.source == (form, token)
                assert sent.as_shared == ends_private


def test_the_explanation_names_value_pass_and_mode() -> None:
    text = explain(unrank(space_of("2", "S1"), 1))
    assert text.startswith("t1 is lost: the destination holds garbage, read through a shared PTE.")
    assert "Live pass 2 sent t1 private by a copied status" in text
    assert "nothing marked the page dirty" in text
    flipped = explain(unrank(space_of("5", "S3"), 0))
    assert "holds E_s(t1), read through a private PTE" in flipped
    assert "lost by lost_strict only" in flipped


def test_the_explanation_of_a_loss_in_the_final_pass() -> None:
    space = space_of("D S E", "S1")
    texts = {explain(witness) for witness in witnesses(space)}
    assert any(re.search(r"The final pass sent t1 private by a copied status", t) for t in texts)
    late = space_of("S D", "PTE- t1! HC-")
    assert any("and it was not sent again" in explain(witness) for witness in witnesses(late))


def test_the_explanation_where_nothing_was_sent_or_nothing_is_lost() -> None:
    never = unrank(space_of("1", "HC+", 2, "starts-clean"), 0)
    assert "The page was never sent." in explain(never)
    scenario = Scenario(parse_order("1"), parse_script("S1"))
    assert explain(replay(scenario, next(interleavings(scenario)))) == (
        "nothing is lost: the guest reads t1"
    )
