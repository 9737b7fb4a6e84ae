# SPDX-License-Identifier: GPL-2.0-or-later
"""One document, as lines of a terminal and as a page; what the verbs put into theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.cli import console
from guestemu.cli.main import main
from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import parse_order, parse_rules, parse_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.programs import witness_program
from guestemu.migration.model.witness import unrank
from guestemu.migration.sweep.heat import KEPT, LOST, Heat
from guestemu.report.document import (
    Bullets,
    Chapter,
    Code,
    Document,
    Grid,
    Item,
    Paragraph,
    Picture,
    document_page,
)
from guestemu.report.page import TableCell
from guestemu.report.trace.races import race_of
from guestemu.report.witness import race_of_witness

HOSTILE = "</title><script>alert(1)</script>\x1b[31m"
WHOLE = Document(
    f"A title {HOSTILE}",
    (
        Chapter("", (Paragraph(f"only a page has this {HOSTILE}"),), is_page_only=True),
        Chapter(
            f"Figures {HOSTILE}",
            (
                Paragraph("in red", "red"),
                Grid(("name", "count"), ((HOSTILE, TableCell("3", "bad", "place", HOSTILE)),)),
                Picture("bars", (Heat(HOSTILE, KEPT + LOST),)),
                Code("guestemu run", True),
            ),
            "place",
        ),
    ),
)


def scenario(order: str = "2", script: str = "S1") -> Scenario:
    return Scenario(parse_order(order), parse_script(script), 2, parse_rules([]))


def test_a_terminal_gets_text_and_no_controls(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_document(WHOLE)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "only a page has this" not in text
    lines = text.splitlines()
    assert lines[0].startswith("A title")
    assert lines[-1] == "$ guestemu run"
    assert any(line.startswith("name") and line.endswith("count") for line in lines)


def test_a_page_has_everything_and_is_inert() -> None:
    page = document_page(WHOLE)
    assert "<script>alert" not in page
    assert "only a page has this" in page
    assert '<a href="#place">3</a>' in page
    assert 'id="place"' in page


NESTED = Document(
    "A title",
    lead=(
        Paragraph("directly below"),
        Item(
            f"an operation {HOSTILE}",
            (Bullets(("a step", "")), Item(": seen", (Paragraph("behind it"),), "red", "wrong")),
            "bold",
            indent=4,
        ),
        Grid((), (("name", "1"), ("longer name", "2"))),
    ),
    chapters=(Chapter("", (Paragraph("after a blank line"),)),),
)


def test_what_belongs_to_a_line_is_indented_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_document(NESTED)
    title, below, operation, *rest = capsys.readouterr().out.splitlines()
    assert (title, below) == ("A title", "directly below")
    assert operation.startswith("an operation")
    assert rest == [
        "      a step",
        "",
        "    wrong: seen",
        "      behind it",
        "name         1",
        "longer name  2",
        "",
        "after a blank line",
    ]


def test_a_page_has_entries_with_what_belongs_to_them() -> None:
    page = document_page(NESTED)
    assert "<script>alert" not in page
    assert '<b class="bad">wrong</b>: seen</p><div><p>behind it</p></div>' in page
    assert '<table class="pairs"><tbody><tr><td>name' in page


@pytest.mark.parametrize(
    ("order", "script", "rank"),
    [("2", "S1", 0), ("2", "S1", 6), ("3", "S2", 17), ("2", "S0", 0), ("1", "S1c", 45)],
)
def test_the_step_that_loses_is_the_one_that_the_machine_finds(
    order: str, script: str, rank: int
) -> None:
    """The model knows it from its tallies, the race of a program from runs in other orders. Where
    the model's step is STOP, the machine names a step of the final pass, which STOP includes."""
    space = Space(scenario(order, script))
    witness = unrank(space, rank)
    found = race_of_witness(space, witness)
    machine, _ = race_of(witness_program(witness))
    assert found.lost_at is not None
    assert machine.lost_at is not None
    start = 2  # the program writes the first value and starts the migration
    if found.steps[found.lost_at].text.startswith("STOP"):
        inside = range(found.lost_at, found.lost_at + 1 + len(witness.scenario.order.steps))
        assert machine.lost_at - start in inside
    else:
        assert machine.lost_at - start == found.lost_at


def test_no_continuation_saves_the_page_after_that_step_and_one_does_before_it() -> None:
    for script in ("S1", "S1c", "S2", "S0"):
        space = Space(scenario("3", script))
        for rank in range(0, space.tally.lost_strict, 1 + space.tally.lost_strict // 9):
            witness = unrank(space, rank)
            at = race_of_witness(space, witness).lost_at
            assert at is not None
            after, before = (
                space.tally_of(state)
                for state in (witness.moments[at].after, witness.moments[at].before)
            )
            assert after.lost_strict == after.total
            assert before.lost_strict < before.total


def test_steps_of_a_guest_belong_to_the_pass_they_fall_into() -> None:
    space = Space(scenario())
    race = race_of_witness(space, unrank(space, 3))
    assert [step.lane for step in race.steps if step.op in (1, 5, 6)] == ["guest"] * 3
    assert [step.band for step in race.steps] == [1, 1, 1, 1, 2, 2, 2, 2, 2, 0]
    assert race.steps[8].effects == ("sent as private: arrives as garbage",)


def test_pages_of_explore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["explore", "--order", "2", "--script", "S1"]
    page = tmp_path / "witness.html"
    assert main([*cell, "--witness", "1", "--html", str(page)]) == 1
    assert "guestemu explore --order 2 --script &#x27;PTE- HC- t1!&#x27;" in page.read_text()
    table = tmp_path / "table.html"
    assert main(["explore", "--html", str(table)]) == 1
    assert table.read_text().count("<h3 id=") == 36
    capsys.readouterr()
    assert main([*cell, "--list", "--html", str(page)]) == 2
    assert "--html is a page of the table or of --witness" in capsys.readouterr().err
