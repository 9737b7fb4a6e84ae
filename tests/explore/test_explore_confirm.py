# SPDX-License-Identifier: GPL-2.0-or-later
"""The order model against migrations on the machine, and interleavings as programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from walked import interleavings

from guestemu.cli.main import main
from guestemu.migration.dirty_log import DirtyLog
from guestemu.migration.links import PlainSender
from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import parse_order, parse_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.programs import LinkKind, witness_comment, witness_program
from guestemu.migration.model.steps import ORDERS, SCRIPTS
from guestemu.migration.model.witness import format_witness, replay, unrank
from guestemu.migration.steps import PassSteps
from guestemu.program.program import Header
from guestemu.program.text import format_text, parse_text
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import build_testbed
from guestemu.study.explore_confirm import choose, confirm, machine_verdict, planned

Captured = pytest.CaptureFixture[str]

CELLS = [(order, script) for order in ORDERS for script in SCRIPTS]


def spaces() -> list[Space]:
    return [Space(Scenario(order, script)) for order, script in CELLS]


def test_the_machine_agrees_on_every_cell() -> None:
    found = confirm(spaces(), most=400, seed=3)
    assert (found.losing, found.others) == (400, 400)
    assert (found.confirmed, found.disagreements) == (800, 0)
    assert 0 < found.lost_defined < 400


@pytest.mark.parametrize("link", [LinkKind.FIRMWARE, LinkKind.HANDLER])
def test_through_the_firmware_and_through_handlers(link: LinkKind) -> None:
    found = confirm(spaces(), most=50, link=link)
    assert (found.confirmed, found.disagreements, found.link) == (100, 0, link.value)


def test_every_interleaving_of_a_cell_by_both_verdicts() -> None:
    """Not a sample: order 5, script S1c, the 23 that lose and the 33 that do not."""
    scenario = Scenario(ORDERS[4], SCRIPTS[2])
    testbed = build_testbed(Header())
    lost = 0
    for one in interleavings(scenario):
        witness = replay(scenario, one)
        found = machine_verdict(testbed, witness, LinkKind.PLAIN)
        assert found == witness.verdict, format_witness(witness)
        lost += found.lost_strict
    testbed.close()
    assert lost == 23


def test_all_losing_interleavings_are_chosen_once_and_as_many_others() -> None:
    of_cells = spaces()
    assert planned(of_cells, None) == 3770
    small = of_cells[:2] + of_cells[6:8]
    chosen = list(choose(small, None, seed=1))
    losing = [witness for witness in chosen if witness.verdict.lost_strict]
    assert len(losing) == len(set(map(format_witness, losing))) == 9
    assert len(chosen) == 18
    assert planned(of_cells, 30) == 30
    cells = {
        (witness.scenario.order, witness.scenario.script)
        for witness in choose(of_cells, 30, 1)
        if witness.verdict.lost_strict
    }
    assert len(cells) == sum(space.tally.lost_strict > 0 for space in of_cells)


@pytest.mark.parametrize(
    ("place", "name", "broken"),
    [
        (PassSteps, "copy_status", lambda self: 0),
        (PassSteps, "clear", lambda self: 0),
        (DirtyLog, "clear", lambda self, frames: None),
        (PlainSender, "send", None),
    ],
)
def test_a_machine_that_works_otherwise_is_noticed(
    monkeypatch: pytest.MonkeyPatch, place: type, name: str, broken: object
) -> None:
    if broken is None:
        send = PlainSender.send
        broken = lambda self, gfn, status: send(self, gfn, not status)  # noqa: E731
    monkeypatch.setattr(place, name, broken)
    found = confirm(spaces(), most=120)
    assert found.disagreements > 0
    assert found.first[0].model != found.first[0].machine
    assert found.confirmed + found.disagreements == 240


def test_an_order_and_a_script_of_the_users_own() -> None:
    scenario = Scenario(parse_order("G E D S C"), parse_script("t3! PTE- HC- PTE+ t9! HC+"), 1)
    found = confirm([Space(scenario)], most=60)
    assert (found.disagreements, found.losing) == (0, 60)


def test_the_program_of_a_witness_says_what_is_lost() -> None:
    scenario = Scenario(ORDERS[1], SCRIPTS[0])
    witness = unrank(Space(scenario), 3)
    text = format_text(witness_program(witness), witness_comment(witness))
    assert "# E PTE- D S E HC- t1! D S STOP" in text
    assert "expect violation lost_strict at 15\nexpect violation lost_defined at 15" in text
    outcome = run_program(parse_text(text, "p")).outcome
    assert [(v.check, v.op) for v in outcome.violations] == [
        ("lost_strict", 15),
        ("lost_defined", 15),
    ]


def test_confirm_from_the_command_line(capsys: Captured) -> None:
    assert main(["explore", "--confirm", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["confirmed"], found["disagreements"], found["losing"]) == (40, 0, 20)
    assert main(["explore", "--confirm", "all", "--order", "2", "--script", "S1"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["losing"] == "7 by lost_strict, 7 by lost_defined"
    assert (lines["confirmed"], lines["disagreements"]) == ("14", "0")


def test_a_disagreement_is_exit_status_1(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassSteps, "copy_status", lambda self: 0)
    assert main(["explore", "--confirm", "9", "--order", "1"]) == 1
    assert "model not lost, machine lost_strict" in capsys.readouterr().out


@pytest.mark.parametrize("link", ["plain", "firmware", "handler"])
def test_a_witness_is_written_run_and_replayed(capsys: Captured, tmp_path: Path, link: str) -> None:
    out = str(tmp_path / "lost.prog")
    cell = ["--order", "3", "--script", "S2", "--witness", "40"]
    assert main(["explore", *cell, "--prog", out, "--link", link]) == 1
    assert main(["replay", out]) == 0
    capsys.readouterr()
    assert main(["run", out, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "lost_strict" in [violation["check"] for violation in found["violations"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--confirm 0", "--confirm '0': give a number of interleavings from 1 on, or all"),
        ("--confirm few", "--confirm 'few'"),
        ("--confirm all --passes 80 --script S2 --order 2", "losing interleavings; give up to"),
        ("--confirm 5 --rule starts-clean", "--rule has no meaning on the machine"),
        ("--confirm 5 --reduce", "--confirm has no meaning with --reduce"),
        ("--confirm 5 --order 2 --script S1 --list", "--confirm has no meaning with --list"),
        ("--link firmware", "--link goes with --confirm or --prog"),
        ("--confirm 5 --link tin", "--link 'tin'; use plain, firmware, handler"),
        ("--order 2 --script S1 --prog out.prog", "add --witness K"),
        ("--order 2 --script S1 --witness 0 --prog /nowhere/x.prog", "another place with --prog"),
    ],
)  # fmt: skip
def test_bad_input(capsys: Captured, arguments: str, message: str) -> None:
    assert main(["explore", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
