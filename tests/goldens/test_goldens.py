# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs print what they printed before. `golden_outputs.py` says what is compared and how the
files are renewed where a change is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_outputs import CAMPAIGN, COMMANDS, HERE, LONG, ROOT, corpora, golden, output, shape

_NEEDS_KERNEL = frozenset(name for name in LONG if "kernel" in name)


@pytest.fixture(autouse=True)
def _from_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_verb_prints_what_it_did(name: str, tmp_path: Path) -> None:
    assert output(name, COMMANDS[name], tmp_path) == golden(name)


def test_a_campaign_and_what_is_made_of_it_are_repeatable(tmp_path: Path) -> None:
    for name, command in CAMPAIGN.items():
        assert output(name, command, tmp_path / "work") == golden(name), name


def test_every_program_of_the_corpora_takes_its_course(tmp_path: Path) -> None:
    found, expected = corpora(tmp_path), golden("corpora")
    assert isinstance(found, dict)
    assert isinstance(expected, dict)
    assert found.keys() == expected.keys()
    for path, ran in found.items():
        assert ran == expected[path], path


def test_every_golden_file_has_its_command() -> None:
    names = {path.stem for path in HERE.glob("*.json")}
    assert names - set(LONG) == {"corpora", *COMMANDS, *CAMPAIGN}


def test_wording_and_measures_are_not_compared_but_numbers_and_names_are() -> None:
    line = {"op": "read D[0]", "help": "a sentence", "seconds": 1.5, "ret": -22, "schema": 1}
    changed = line | {"help": "another sentence", "seconds": 2.5, "schema": 2}
    assert shape(line) == shape(changed)
    for key, value in (("op", "read D[1]"), ("ret", 0), ("new", 1)):
        assert shape(line) != shape(line | {key: value}), key


@pytest.mark.soak
@pytest.mark.parametrize("name", LONG)
def test_a_long_verb_prints_what_it_did(name: str, tmp_path: Path) -> None:
    if not (HERE / f"{name}.json").exists():
        pytest.skip(f"no golden file: python tests/goldens/golden_outputs.py {name}")
    expected = golden(name)
    found = output(name, LONG[name], tmp_path)
    if name in _NEEDS_KERNEL and isinstance(found, dict) and found["status"] in {2, 3}:
        pytest.skip("no kernel was fetched")
    assert found == expected
