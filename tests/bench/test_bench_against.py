# SPDX-License-Identifier: GPL-2.0-or-later
"""Two checkouts side by side, of which these tests write the bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.bench.against import PairedRuns, compare, find_checkout
from guestemu.cli.main import main

BENCH = """
import json, sys
values = json.loads({values!r})
if "--list" in sys.argv:
    print(json.dumps({{"benchmarks": [{{"name": name}} for name in values]}}))
else:
    names = [word for before, word in zip(sys.argv, sys.argv[1:]) if before == "--only"]
    print(json.dumps({{"figures": [
        dict(name=name, value=values[name], unit="/s" if name == "rate" else "us",
             floor=None, ratio=None, against="")
        for name in names
    ]}}))
"""


def checkout(root: Path, **values: float | None) -> Path:
    package = root / "guestemu"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(BENCH.format(values=json.dumps(values)))
    return root


def test_ratios_are_of_time_and_only_what_both_have_is_measured(tmp_path):
    here = checkout(tmp_path / "a", decode=3.0, rate=100.0, gone=None, mine=1.0)
    there = checkout(tmp_path / "b", theirs=1.0, gone=5.0, rate=400.0, decode=6.0)
    lines: list[str] = []
    assert list(compare(here, there, [], 2, lines.append)) == [
        PairedRuns("decode", 3.0, "us", 6.0, 0.5),
        PairedRuns("rate", 100.0, "/s", 400.0, 4.0),
        PairedRuns("gone", None, "us", None, None),
    ]
    assert lines == ["round 1 of 2", "round 2 of 2"]
    (one,) = compare(here, there, ["rate"], 1)
    assert one.name == "rate"
    with pytest.raises(InputError, match="--only mine: one of the two"):
        list(compare(here, there, ["mine"], 1))


def test_what_is_no_checkout_and_a_bench_that_fails_are_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="no package guestemu there"):
        find_checkout(tmp_path)
    broken = checkout(tmp_path / "a", decode=1.0)
    (broken / "guestemu" / "__main__.py").write_text("raise SystemExit('no\\x1b bench')")
    with pytest.raises(InputError, match=r"failed: no\\x1b bench$"):
        list(compare(broken, broken, [], 1))
    (broken / "guestemu" / "__main__.py").write_text("print('{}')")
    with pytest.raises(InputError, match="no list of figures"):
        list(compare(broken, broken, [], 1))
    assert main(["bench", "--against", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_prints_a_row_for_each(tmp_path, monkeypatch, capsys):
    there = checkout(tmp_path / "b", decode=6.0)
    here = checkout(tmp_path / "a", decode=3.0)
    monkeypatch.setattr("guestemu.__file__", str(here / "guestemu" / "__init__.py"))
    words = ["bench", "--against", str(there), "--rounds", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "decode",
        "3.00",
        "us",
        "6.00",
        "0.50",
    ]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "guestemu.bench.against/1"
    assert found["comparisons"][0]["ratio"] == 0.5
