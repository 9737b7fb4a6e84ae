# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's MapGPA that KVM hands on in chunks, in the order model (T26, T29)."""

from __future__ import annotations

from math import comb

import pytest

from guestemu.abi.errors import InputError
from guestemu.cli.main import main
from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import format_script, parse_order, parse_rules, parse_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.programs import guest_op
from guestemu.migration.model.reduce import reduce

SCRIPT = "PTE- CH- HC- t1!"
CUT = "cut-reads-success"


def scenario(script: str, *rules: str) -> Scenario:
    return Scenario(parse_order("1"), parse_script(script), rules=parse_rules(rules))


def test_what_falls_between_two_chunks_is_lost() -> None:
    """STOP is right behind CH: PTE and CH come anywhere among the six steps of the live passes."""
    lost = Space(scenario(SCRIPT, CUT)).tally
    assert (lost.lost_strict, lost.total) == (comb(8, 2), comb(11, 4))
    assert reduce(scenario(SCRIPT, CUT)).lost_strict


def test_a_kvm_that_answers_retry_loses_nothing() -> None:
    assert Space(scenario(SCRIPT)).tally.lost_strict == 0


@pytest.mark.parametrize("script", ["PTE- HC- t1!", "CH- PTE- HC- t1!"])
def test_a_call_of_one_chunk_is_not_cut(script: str) -> None:
    assert Space(scenario(script, CUT)).tally.lost_strict == 0


def test_more_chunks_are_more_places() -> None:
    two = Space(scenario("PTE- CH- CH- HC- t1!", CUT)).tally
    assert two.lost_strict == comb(8, 2) + comb(9, 3)


def test_chunks_are_written_as_they_are_read() -> None:
    assert format_script(parse_script("pte- ch- hc- ch+ hc+").steps) == "PTE- CH- HC- CH+ HC+"
    with pytest.raises(InputError, match="CH has no meaning on the machine"):
        guest_op(parse_script("CH- HC-").steps[0])


def test_the_verb_says_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explore", "--order", "1", "--script", SCRIPT, "--rule", CUT, "--witness", "0"]
    assert main(words) == 1
    assert "no host converts the page" in " ".join(capsys.readouterr().out.split())
