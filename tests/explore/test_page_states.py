# SPDX-License-Identifier: GPL-2.0-or-later
"""Every sequence of an SNP guest's round trip and its hypervisor's attacks (N17, N55)."""

from __future__ import annotations

import json
import re
from math import comb
from pathlib import Path

import pytest

from guestemu.cli.main import main
from guestemu.machine.page_attacks import ATTACKS
from guestemu.migration.model.page_states import (
    BROKEN,
    ENDS,
    GOES_ON,
    GUESTS,
    STANDS_STILL,
    PageStatesResult,
    explore_page_states,
)

LINUX, *OTHERS = GUESTS
TEXT = (Path(__file__).parents[2] / "docs" / "explore.md").read_text()


@pytest.mark.parametrize("acts", [0, 1, 2])
def test_linux_goes_on_right_ends_itself_or_stands_still(acts: int) -> None:
    found = explore_page_states(LINUX, acts)
    assert set(found.outcomes) <= {GOES_ON, ENDS, STANDS_STILL}
    steps = len(LINUX.steps)
    assert found.sequences == comb(steps + acts, acts) * len(ATTACKS) ** acts
    assert not found.is_broken


def test_without_attacks_each_guest_goes_on() -> None:
    assert {
        code.name for code in GUESTS if explore_page_states(code, 0).outcomes != {GOES_ON: 1}
    } == set()


@pytest.mark.parametrize("code", OTHERS, ids=lambda code: code.name)
def test_one_remapping_breaks_a_guest_that_leaves_a_rule_out(code) -> None:
    found = explore_page_states(code, 1)
    assert found.is_broken
    assert "remap" in found.first.split()


def test_the_page_has_what_is_counted() -> None:
    rows = {
        name: [int(figure) for figure in figures.split("|")]
        for name, figures in re.findall(
            r"^\| `([a-z-]+)`: [^|]* \| ([\d |]+) \|$", TEXT, re.MULTILINE
        )
    }
    assert rows == {code.name: row_of(explore_page_states(code, 2)) for code in GUESTS}


def row_of(found: PageStatesResult) -> list[int]:
    outcomes = found.outcomes
    broken = sum(outcomes.get(word, 0) for word in BROKEN)
    return [found.sequences, *(outcomes[word] for word in (GOES_ON, ENDS, STANDS_STILL)), broken]


def test_the_verb_gives_the_first_broken_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "page-states", "--guest", "linux", "--acts", "1"]) == 0
    assert "80" in capsys.readouterr().out
    assert main(["explore", "page-states", "--guest", "no-rescind", "--acts", "1", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == "guestemu.explore.page-states/1"
    (found,) = printed["guests"]
    assert found["first"].startswith("remap PSC-")
    assert main(["explore", "page-states", "--guest", "linus"]) == 2
    assert "did you mean linux" in capsys.readouterr().err
