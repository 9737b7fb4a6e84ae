# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on planted bugs: found within a number of executions, nothing where there is none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.cli.main import main
from guestemu.zoo.catalogue import BUGS, find_bugs, repaired_configurations
from guestemu.zoo.cell import OURS, Cell, CellResult, run_here
from guestemu.zoo.results import append_result, median_of, read_results
from guestemu.zoo.runner import plan_cells, run_cells
from guestemu.zoo.table import zoo_page

TWINS = repaired_configurations(BUGS.values())


def cell(bug: str, planted: bool = True, execs: int = 3000, seed: int = 1) -> Cell:
    return Cell(bug, planted, "random", OURS, seed, execs)


# Executions until the random engine with seed 1 found them, with room.
@pytest.mark.parametrize(
    ("bug", "execs"),
    [("M5", 1000), ("M14", 100), ("M21", 1000), ("M35", 200), ("M47", 100), ("M74", 500)],
)
def test_the_random_engine_finds(bug: str, execs: int):
    result = run_here(cell(bug, execs=execs))
    assert result.found
    assert result.check == BUGS[bug].check
    assert result.program


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{twin.target}-{twin.bugs[0]}")
def test_nothing_without_the_bug(twin):
    result = run_here(cell(twin.bugs[0], planted=False, execs=25))
    assert (result.found, result.executions) == (False, 25)


def test_a_campaign_repeats_itself():
    first, second = run_here(cell("M74")), run_here(cell("M74"))
    assert msgspec.structs.replace(first, seconds=0) == msgspec.structs.replace(second, seconds=0)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("arm", ["ours", pytest.param("plain", marks=pytest.mark.soak)])
def test_atheris_finds_in_a_process_of_its_own(arm: str):
    found: list[CellResult] = []
    run_cells([Cell("M74", True, "atheris", arm, 1, 20_000)], 1, found.append)
    assert [result.found for result in found] == [True]


def test_a_process_that_dies_is_told():
    with pytest.raises(Exception, match="died with status"):
        run_cells([Cell("M99", True, "random", OURS, 1, 10)], 1, lambda result: None)


def test_cells_of_a_run():
    bugs = find_bugs(["M1", "M39"])
    options = {"engine": "random", "arm": OURS, "execs": 5, "seconds": None}
    planted = plan_cells(bugs, is_repaired=False, seeds=[1, 2], **options)
    assert [(one.bug, one.seed) for one in planted] == [
        *(("M1", 1), ("M39a", 1), ("M39b", 1)),
        *(("M1", 2), ("M39a", 2), ("M39b", 2)),
    ]
    repaired = plan_cells(bugs, is_repaired=True, seeds=[1], **options)
    assert [one.bug for one in repaired] == ["M1", "M39a"]


def test_results_survive_a_cut_off_line(tmp_path: Path):
    path = tmp_path / "sub" / "results.jsonl"
    assert read_results(path) == []
    one = CellResult(cell("M1"), True, 7, 0.5, "status")
    append_result(path, one)
    with path.open("ab") as file:
        file.write(b'{"cell":')
    assert read_results(path) == [one]
    append_result(path, CellResult(cell("M2"), False, 9, 0.5))
    with pytest.raises(InputError, match=r"results\.jsonl:2: no zoo result"):
        read_results(path)


def test_the_median_of_seeds():
    assert median_of([]) is None
    results = [
        CellResult(cell("M1", seed=seed), found, executions, 1.0)
        for seed, (found, executions) in enumerate(((True, 30), (False, 5), (True, 10)))
    ]
    median = median_of(results)
    assert (median.seeds, median.found, median.execs, median.is_bound) == (3, 2, 30, False)
    assert median_of(results[1:2]).is_bound


def test_the_page_has_every_bug_and_figure():
    results = [
        CellResult(cell("M1"), True, 123, 0.25, "agreement"),
        CellResult(cell("M21", planted=False), False, 60_000, 12.0),
    ]
    page = zoo_page(tuple(BUGS.values()), results)
    for bug in BUGS.values():
        assert f"| {bug.id} | {bug.title} |" in page
    assert "| M1 | agreement | 1/1 | 123 | 0.25 | – | – | – |" in page
    assert "| hypercall | map-gpa-range:6.18 | M21 | 60000 | 12 | 0 |" in page


def test_list_and_run_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["zoo", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["bugs"]
    assert [bug["id"] for bug in listed] == list(BUGS)
    file = str(tmp_path / "r.jsonl")
    common = ["--seeds", "1", "--engine", "random", "--results", file, "--json"]
    assert main(["zoo", "run", "M74", "--execs", "500", *common]) == 0
    (bug,) = json.loads(capsys.readouterr().out)["bugs"]
    assert (bug["id"], bug["found"]) == ("M74", True)
    assert main(["zoo", "run", "M74", "--execs", "500", "--repaired", *common]) == 0
    assert json.loads(capsys.readouterr().out) == {"bugs": [], "false_positives": 0}
    assert len(read_results(Path(file))) == 2
    assert main(["zoo", "table", file, "-o", str(tmp_path / "zoo.md")]) == 0
    assert "| M74 | results | 1/1 |" in (tmp_path / "zoo.md").read_text()


def test_a_campaign_that_finds_nothing_is_status_1(capsys: pytest.CaptureFixture[str]):
    options = ["--seeds", "1", "--engine", "random", "--execs", "1"]
    assert main(["zoo", "run", "M54", *options]) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "M99"], "M99"),
        (["run", "M1", "--engine", "exhaustive"], "exhaustive"),
        (["run", "M1", "--no-feedback", "--engine", "random"], "atheris"),
        (["table", "/nonexistent.jsonl"], "zoo run"),
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]):
    assert main(["zoo", *arguments]) == 2
    assert word in capsys.readouterr().err
