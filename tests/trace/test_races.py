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
    assert found.steps[op].text == "write D[0] value=0x11"
    assert f"after operation {op} (write D[0] value=0x11) no timing" in found.sentence
    assert found.before == " ".join(["11"] * 16) != found.after


def test_a_page_that_no_timing_saves_is_no_race() -> None:
    found = race("examples/demo/forgotten-error.prog")
    assert found.lost_at == 1
    assert "whatever the timing: operation 1 (set_memory_decrypted" in found.sentence
    assert found.steps[1].effects == ("D[0]: page tables shared",)


def test_lanes_passes_and_effects() -> None:
    found = race("corpora/migration/status-before-dirty-s1.prog")
    assert found.lanes == ("guest", HOST)
    assert [step.band for step in found.steps] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0]
    assert found.steps[7].effects == ("D[0]: host's record shared",)
    assert [step.op for step in found.steps if "D[0]: sent as private" in step.effects] == [5, 10]


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
    assert picture.findtext("title", "").startswith("D[0] is lost whatever the timing")
    assert len(picture.findall("line[@class='lost']")) == 1


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "corpora/migration/status-before-dirty-s1.prog")
    page = tmp_path / "race.html"
    assert main(["race", path, "-o", str(page), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["schema"], printed["race"]["lost_at"]) == ("guestemu.race/1", 8)
    assert 'class="race"' in page.read_text()
    assert main(["race", str(ROOT / "corpora/conversion/idempotent.prog")]) == 2
    assert "add migrate_start" in capsys.readouterr().err
