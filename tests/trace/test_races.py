# SPDX-License-Identifier: GPL-2.0-or-later
"""The race names the step after which a page is lost, by running the program in other orders."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from guestemu.cli.main import main
from guestemu.program.text import load_program
from guestemu.report.race import HOST, Race, race_lines, race_svg
from guestemu.report.trace.races import race_of

ROOT = Path(__file__).parents[2]


def race(path: str) -> Race:
    return race_of(load_program(ROOT / path))[0]


@pytest.mark.parametrize(
    ("path", "op"),
    [
        ("corpora/migration/status-before-dirty-s1.prog", 8),
        ("corpora/migration/status-before-dirty-s1b.prog", 5),
        ("corpora/migration/status-between-get-and-clear-s1.prog", 6),
    ],
)
def test_the_last_store_decides_as_long_as_it_could_come_later(path: str, op: int) -> None:
    """Before it the page could still be saved: by a store behind the next copy of the status."""
    found = race(path)
    assert found.lost_at == op
    assert found.steps[op].text == "writes 0x11 to D[0]"
    assert found.sentence == (
        "D[0] is lost: the host sent it as private, the guest reads it as shared. It is a race: "
        f"after operation {op} (writes 0x11 to D[0]) no timing of the other steps saves the page."
    )
    assert found.before == " ".join(["11"] * 16) != found.after


def test_a_page_that_no_timing_saves_is_no_race() -> None:
    found = race("examples/demo/forgotten-error.prog")
    assert found.lost_at == 1
    assert "It is not a race: operation 1 (set_memory_decrypted" in found.sentence
    assert found.sentence.endswith("is enough, whatever the timing.")
    assert found.steps[1].effects == ("D[0]: page tables shared",)


def test_lanes_passes_and_effects() -> None:
    found = race("corpora/migration/status-before-dirty-s1.prog")
    assert found.lanes == ("guest", HOST)
    assert [step.band for step in found.steps] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0]
    assert found.steps[7].effects == ("D[0]: host's record shared",)
    assert [step.op for step in found.steps if "D[0]: sent as private" in step.effects] == [5, 10]


def test_steps_are_told_in_words_with_what_the_copy_and_the_log_say() -> None:
    found = race("corpora/migration/status-before-dirty-s1.prog")
    assert found.steps[7].text == "tells the host: D[0] is shared"
    copies = [step for step in found.steps if step.text == "copies its record of shared pages"]
    assert [step.effects for step in copies] == [
        ("D[0]: private in the copy",),
        ("D[0]: private in the copy",),
        ("D[0]: shared in the copy",),
    ]
    assert found.steps[13].effects == ("D[0]: not in the log, not sent",)


def test_a_narrow_picture_has_every_step_in_its_width() -> None:
    found = race("corpora/migration/status-before-dirty-s1.prog")
    picture = ElementTree.fromstring(race_svg(found, "race", is_narrow=True))
    width = float(picture.get("viewBox", "").split()[2])
    boxes = [one for one in picture.findall("rect") if "box" in one.get("class", "").split()]
    assert len(boxes) == len(found.steps)
    assert all(float(one.get("x", "")) + float(one.get("width", "")) <= width for one in boxes)


def test_a_page_that_is_kept_has_no_such_step() -> None:
    found = race("corpora/migration/whole-guest-firmware.prog")
    assert found.lost_at is None
    assert found.sentence == "The guest reads at the destination what it wrote."


@pytest.mark.parametrize("is_ascii", [False, True])
def test_the_text_fits_a_terminal(is_ascii: bool) -> None:
    found = race("corpora/migration/there-and-back-s2-firmware.prog")
    lines = [line.text for line in race_lines(found, is_ascii)]
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).endswith(found.sentence)
    assert not is_ascii or "".join(lines).isascii()


def test_the_picture_is_well_formed() -> None:
    found = race("corpora/migration/guest-page-never-sent.prog")
    picture = ElementTree.fromstring(race_svg(found, "race"))
    assert picture.findtext("title", "").startswith("D[0] is lost: ")
    assert len(picture.findall("line[@class='lost']")) == 1


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "corpora/migration/status-before-dirty-s1.prog")
    page = tmp_path / "race.html"
    assert main(["race", path, "-o", str(page), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["schema"], printed["race"]["lost_at"]) == ("guestemu.race/1", 8)
    assert "<h1>D[0] is lost in a migration</h1>" in page.read_text()
    assert main(["race", str(ROOT / "corpora/conversion/idempotent.prog")]) == 2
    assert "add migrate_start" in capsys.readouterr().err
