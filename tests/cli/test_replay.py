# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu replay`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from guestemu.cli.main import main

GOOD = "guestemu-program 1\n---\nset_memory_decrypted D[3] pages=2\n\nexpect hypercalls 2\n"
FAILING = GOOD.replace("hypercalls 2", "hypercalls 3")
BROKEN = GOOD.replace("set_memory_decrypted", "set_memory")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, text in (("good", GOOD), ("failing", FAILING)):
        (tmp_path / f"{name}.prog").write_text(text)
    return tmp_path


def test_all_as_expected(programs: Path, capsys: Captured) -> None:
    assert main(["replay", str(programs / "good.prog")]) == 0
    assert capsys.readouterr().out.startswith("1 program, 1 as expected, ")


def test_a_failure_shows_file_expectation_and_what_was_found(
    programs: Path, capsys: Captured
) -> None:
    assert main(["replay", str(programs)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"FAILED {programs / 'failing.prog'}",
        "    expected: expect hypercalls 3",
        "    found:    hypercalls 2",
    ]
    assert lines[3].startswith("2 programs, 1 as expected, 1 failed, ")


def test_json_has_the_keys_of_the_contract(programs: Path, capsys: Captured) -> None:
    assert main(["replay", "--json", str(programs)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["programs"], found["passed"], found["bad"]) == (2, 1, [])
    assert found["failed"] == [
        {
            "program": str(programs / "failing.prog"),
            "expectation": "expect hypercalls 3",
            "found": "hypercalls 2",
        }
    ]
    assert found["seconds"] > 0


def test_a_corrupt_file_is_counted_and_the_others_are_judged(
    programs: Path, capsys: Captured
) -> None:
    (programs / "broken.prog").write_text(BROKEN)
    assert main(["replay", str(programs)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"guestemu: {programs / 'broken.prog'}:3: no op 'set_memory'")
    assert "3 programs, 1 as expected, 1 failed, 1 cannot be run" in out


def test_jobs_change_nothing(programs: Path, capsys: Captured) -> None:
    objects = []
    for jobs in ("1", "2"):
        assert main(["replay", "--json", "--jobs", jobs, str(programs)]) == 1
        found = json.loads(capsys.readouterr().out)
        del found["seconds"]
        objects.append(found)
    assert objects[0] == objects[1]


def test_junit(programs: Path, capsys: Captured) -> None:
    out = programs / "results.xml"
    assert main(["replay", "--junit", str(out), str(programs)]) == 1
    suite = ElementTree.parse(out).getroot()[0]
    assert {case.get("name"): [child.tag for child in case] for case in suite} == {
        "failing.prog": ["failure"],
        "good.prog": [],
    }
    assert main(["replay", "--junit", "/nonexistent/r.xml", str(programs)]) == 2
    assert "make its directory, or name another place with --junit" in capsys.readouterr().err


def test_record(programs: Path, capsys: Captured) -> None:
    assert main(["replay", "--record", str(programs)]) == 0
    assert "2 programs, 2 recorded, 2 files changed" in capsys.readouterr().out
    assert main(["replay", str(programs)]) == 0


def test_nothing_to_replay_is_bad_input(tmp_path: Path, capsys: Captured) -> None:
    assert main(["replay", str(tmp_path)]) == 2
    assert "no .prog file" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "x.prog")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["replay"]) == 2
