# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu merge`: a corpus that covers the same with less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz_command import fuzz_json

from guestemu.campaign.store import Store
from guestemu.cli.main import main


def run(capsys, *arguments: str) -> tuple[int, dict[str, object], str]:
    status = main(["merge", *arguments, "--json"])
    done = capsys.readouterr()
    return status, json.loads(done.out) if done.out else {}, done.err


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    root = tmp_path_factory.mktemp("campaign")
    fuzz_json(
        *("msr", "--execs", "1500", "--engine", "random", "--workdir", "w"), cwd=root, status=0
    )
    return root / "w"


def test_less_inputs_cover_the_same(campaign, tmp_path, capsys):
    before = names(campaign / "corpus")
    status, first, _ = run(capsys, str(campaign), "-o", str(tmp_path / "small"))
    assert status == 0
    assert names(campaign / "corpus") == before
    assert first["kept"] + first["dropped"] == len(before)
    assert first["dropped"] > 0
    small = tmp_path / "small"
    assert len(names(small)) == first["kept"]
    _, again, _ = run(capsys, str(campaign), str(small), "-o", str(tmp_path / "b"))
    assert again["coverage"] == first["coverage"]


def test_in_place_others_join_and_the_journal_does_not_bring_back(campaign, tmp_path, capsys):
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "mine").write_bytes(b"\x03" * 96)
    status, merged, _ = run(capsys, str(campaign), str(extra))
    assert status == 0
    kept = names(campaign / "corpus")
    assert len(kept) == merged["kept"]
    store = Store(campaign)
    assert store.repair() == []
    assert names(campaign / "corpus") == kept


@pytest.mark.parametrize("what", ["nothing", "empty"])
def test_a_merge_of_nothing_is_an_error(what, tmp_path, capsys, campaign):
    if what == "nothing":
        status, _, error = run(capsys, str(tmp_path / "none"))
        words = "name the work directory"
    else:
        empty = tmp_path / "w"
        (empty / "corpus").mkdir(parents=True)
        (empty / "campaign.json").write_bytes((campaign / "campaign.json").read_bytes())
        status, _, error = run(capsys, str(empty))
        words = "no inputs to merge"
    assert status == 2
    assert words in error
    assert error.count("\n") == 1


def test_a_directory_in_use_is_not_written_over(campaign, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    status, _, error = run(capsys, str(campaign), "-o", str(tmp_path))
    assert status == 2
    assert "not empty" in error
    assert names(tmp_path) == {"mine.txt"}
