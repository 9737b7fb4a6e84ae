# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on planted bugs: found within a number of executions, nothing where there is none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest
from hunt import hunt_here

from guestemu.abi.errors import InputError
from guestemu.abi.json_lines import append_json_line
from guestemu.campaign.engines import atheris as engines
from guestemu.campaign.engines.atheris import AtherisEngine
from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.planted import session as zoo_session
from guestemu.campaign.planted.bug import Configuration
from guestemu.campaign.planted.catalogue import BUGS, find_bugs, repaired_configurations
from guestemu.campaign.planted.cell import OURS, PLAIN, CellResult, HuntCell, make_session
from guestemu.campaign.planted.plain import PlainEngine
from guestemu.campaign.planted.results import CampaignComparison, compare, median_of, read_results
from guestemu.campaign.planted.runner import is_covered, is_settled, plan_cells, run_cells
from guestemu.campaign.planted.session import ZooSession
from guestemu.campaign.planted.table import zoo_page
from guestemu.cli.main import main

TWINS = repaired_configurations(BUGS.values())


def cell(bug: str, planted: bool = True, execs: int = 3000, seed: int = 1) -> HuntCell:
    return HuntCell(bug, planted, "random", OURS, seed, execs)


# Executions until the random engine with seed 1 found them, with room.
@pytest.mark.parametrize(
    ("bug", "execs"),
    [
        ("M5", 1000),
        ("M14", 100),
        ("M21", 1000),
        ("M35", 200),
        ("M47", 100),
        ("M74", 500),
        ("N10", 3000),
        ("N12", 4000),
        pytest.param("N19", 20_000, marks=pytest.mark.soak),
    ],
)
def test_the_random_engine_finds(bug: str, execs: int):
    result = hunt_here(cell(bug, execs=execs))
    assert result.found
    assert result.check == BUGS[bug].check
    assert result.program


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{twin.target}-{twin.bugs[0]}")
def test_nothing_without_the_bug(twin):
    result = hunt_here(cell(twin.bugs[0], planted=False, execs=25))
    assert (result.found, result.executions) == (False, 25)


def test_a_campaign_repeats_itself():
    first, second = hunt_here(cell("M74")), hunt_here(cell("M74"))
    for name in ("seconds", "cpu_seconds"):
        first, second = (msgspec.structs.replace(one, **{name: 0}) for one in (first, second))
    assert first == second


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("arm", ["ours", pytest.param("plain", marks=pytest.mark.soak)])
def test_atheris_finds_in_a_process_of_its_own(arm: str):
    found: list[CellResult] = []
    run_cells([HuntCell("M74", True, "atheris", arm, 1, 20_000)], 1, found.append)
    assert [result.found for result in found] == [True]


def options_given(arm: str, session: ZooSession, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What libFuzzer would get on its command line."""
    import atheris

    given: list[str] = []
    engine = AtherisEngine() if arm == OURS else PlainEngine()
    monkeypatch.setattr(
        engines, "fuzz", lambda arguments, *_rest, **_options: given.extend(arguments)
    )
    monkeypatch.setattr(atheris, "Fuzz", lambda: None)
    monkeypatch.setattr(atheris, "Setup", lambda arguments, run, **options: given.extend(arguments))
    engine.run(session, lambda error: None)
    return given[1:]


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("arm", [OURS, PLAIN])
def test_a_campaign_starts_from_nothing(arm: str, monkeypatch: pytest.MonkeyPatch):
    """No corpus directory, no seed inputs, no dictionary: libFuzzer hears of options only."""
    session = make_session(HuntCell("M74", True, "atheris", arm, 1, 10))
    options = options_given(arm, session, monkeypatch)
    assert session.store is None
    assert "-seed=2" in options
    assert all(option.startswith("-") for option in options)
    assert not [option for option in options if option.startswith(("-dict", "-seed_inputs"))]


@pytest.mark.parametrize("bug", BUGS)
def test_a_cell_is_of_the_bug_it_names(bug: str, monkeypatch: pytest.MonkeyPatch):
    """M62 is no M62b."""
    made: list[Configuration] = []

    def session(target: object, configuration: Configuration, check: str, **rest: object):
        made.append(configuration)

    monkeypatch.setattr(zoo_session, "ZooSession", session)
    make_session(cell(bug))
    assert made == [BUGS[bug].planted]


def test_the_random_engine_starts_from_nothing():
    """Its first input is one that it drew, and no file is read."""
    session = make_session(cell("M54", execs=1))
    RandomEngine().run(session, lambda error: None)
    assert session.store is None
    assert session.executions == 1


def test_a_process_that_dies_is_told():
    with pytest.raises(Exception, match="died with status"):
        run_cells([HuntCell("M99", True, "random", OURS, 1, 10)], 1, lambda result: None)


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


def settle(missed: int, found: int = 0, execs: int = 100, wanted: int = 100, arm: str = OURS):
    results = [
        CellResult(HuntCell("M1", True, "atheris", arm, seed, execs), seed > missed, execs, 1.0)
        for seed in range(1, missed + found + 1)
    ]
    return is_settled(HuntCell("M1", True, "atheris", OURS, 5, wanted), results, 5)


def test_seeds_after_a_majority_of_misses_are_needless():
    assert settle(missed=3)
    assert settle(missed=3, found=1)
    assert not settle(missed=2, found=2)
    assert not settle(missed=3, execs=99), "a smaller budget says nothing"
    assert not settle(missed=3, arm="plain")
    twins = [CellResult(cell("M1", False, seed=seed), False, 3000, 1.0) for seed in (1, 2, 3)]
    assert not is_settled(cell("M1", False, seed=4), twins, 5), "a twin must be tried"


def test_needless_cells_are_not_run():
    seen: list[HuntCell] = []

    def needless(one: HuntCell) -> bool:
        seen.append(one)
        return True

    run_cells([cell("M99"), cell("M1")], 1, lambda result: None, needless)
    assert [one.bug for one in seen] == ["M99", "M1"]


@pytest.mark.parametrize(
    ("found", "executions", "seconds", "wanted"),
    [
        (True, 50, 1.0, True),
        (True, 150, 1.0, False),
        (False, 100, 10.0, True),
        (False, 99, 10.0, False),
        (False, 100, 9.9, False),
    ],
)
def test_a_result_answers_a_budget(found: bool, executions: int, seconds: float, wanted: bool):
    asked = HuntCell("M1", True, "random", OURS, 1, 100, 10.0)
    ran = msgspec.structs.replace(asked, execs=1000)
    assert is_covered(asked, CellResult(ran, found, executions, seconds)) is wanted
    assert not is_covered(cell("M1", seed=2), CellResult(ran, found, executions, seconds))


def test_results_survive_a_cut_off_line(tmp_path: Path):
    path = tmp_path / "sub" / "results.jsonl"
    assert read_results(path) == []
    one = CellResult(cell("M1"), True, 7, 0.5, "status")
    append_json_line(path, one)
    with path.open("ab") as file:
        file.write(b'{"cell":')
    assert read_results(path) == [one]
    append_json_line(path, CellResult(cell("M2"), False, 9, 0.5))
    with pytest.raises(InputError, match=r"results\.jsonl:2: not a zoo result"):
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
        CellResult(
            HuntCell("M2", True, "atheris", PLAIN, 1, 900), False, 900, 3.0, cpu_seconds=1.5
        ),
        CellResult(cell("M21", planted=False), False, 60_000, 12.0, cpu_seconds=5.0),
    ]
    page = zoo_page(tuple(BUGS.values()), results)
    for bug in BUGS.values():
        assert f"| {bug.id} | {bug.title} |" in page
    assert "| M1 | agreement | 1/1 | 123 | 0.25 | – | – | – | – | – | – | – | – |" in page
    assert "| hypercall | map-gpa-range:6.18 | M21 | 60000 | 12 | 5 | 0 |" in page
    assert "Ours: 1 of 1 bugs found, the median bug after 123 executions" in page
    assert "Plain: 0 of 1 bugs found; not: M2." in page
    assert "| M2 | free-pages | – | – | – | 0/1 | >900 | >1.50 | – | – | – | – | – |" in page


def blind(bug: str, seed: int, found: bool, executions: int) -> CellResult:
    chosen = HuntCell(bug, True, "blind", OURS, seed, 900)
    return CellResult(chosen, found, executions, 1.0)


def test_mann_and_whitneys_test():
    """U and p as scipy.stats.mannwhitneyu(method="asymptotic") has them."""
    own = [CellResult(cell("M1", seed=one), True, one, 1.0) for one in (1, 2, 3, 4, 5)]
    others = [blind("M1", one, one < 9, one) for one in (4, 6, 7, 8, 9)]
    compared = compare(own, others)
    assert compared is not None
    assert compared.ahead == (22 + 1 / 2 + 1) / 25
    assert round(compared.p, 4) == 0.0278
    assert compare(own, own) == CampaignComparison(0.5, 1.0)
    assert compare(own, []) is None


def test_the_empty_inputs_that_libfuzzer_begins_with_are_no_programs():
    guided = [CellResult(HuntCell("M1", True, "atheris", OURS, 1, 900), True, 3, 1.0)]
    compared = compare(guided, [blind("M1", 1, True, 1)])
    assert compared is not None
    assert compared.ahead == 0.5


def test_the_page_says_where_blind_campaigns_are_ahead():
    bugs = tuple(BUGS.values())
    results = []
    for seed in range(9):
        results += [CellResult(cell("M1", seed=seed), True, 10 + seed, 1.0)]
        results += [CellResult(cell("M6", seed=seed), True, 300 + seed, 1.0)]
        results += [blind("M1", seed, True, 200), blind("M6", seed, seed > 1, 90)]
    page = zoo_page(bugs, results)
    assert (
        "| M1 | agreement | 9/9 | 14 | 1.00 | – | – | – | 9/9 | 200 | 1.00 | 1.00 | <0.001 |"
        in page
    )
    assert "| 7/9 | 90 | 1.00 | 0.22 | 0.045 |" in page
    assert "fewer executions for 1 and more for 1 (M6)" in page
    assert zoo_page(bugs, [], page) == page


def test_figures_of_an_earlier_page_stay_where_the_results_have_none():
    bugs = tuple(BUGS.values())
    plain = HuntCell("M1", True, "atheris", PLAIN, 1, 900)
    first = zoo_page(
        bugs,
        [
            *(CellResult(cell("M1"), True, 123, 0.25), CellResult(plain, False, 900, 3.0)),
            CellResult(cell("M2"), True, 500, 0.5),
            CellResult(cell("M21", planted=False), False, 60_000, 12.0, cpu_seconds=5.0),
        ],
    )
    page = zoo_page(bugs, [CellResult(cell("M1"), True, 77, 0.75)], first)
    assert "| M1 | agreement | 1/1 | 77 | 0.75 | 0/1 | >900 | >3.00 | – | – | – | – | – |" in page
    assert "| M2 | free-pages | 1/1 | 500 | 0.50 | – | – | – | – | – | – | – | – |" in page
    assert "| hypercall | map-gpa-range:6.18 | M21 | 60000 | 12 | 5 | 0 |" in page
    assert "Ours: 2 of 2 bugs found, the median bug after 77 executions" in page
    assert zoo_page(bugs, [], page) == page


def test_the_committed_page_is_what_its_own_figures_make():
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert zoo_page(tuple(BUGS.values()), [], page) == page


def test_the_committed_page_has_the_bugs_of_the_catalogue():
    """What does not come from campaigns is as `zoo table` writes it, and every bug has its row."""
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    written = zoo_page(tuple(BUGS.values()), [])
    end = "## Campaigns"
    assert page.split(end)[0] == written.split(end)[0]
    for bug in BUGS.values():
        assert page.count(f"| {bug.id} | {bug.check} |") == 1
    first = [line.split(" | ")[:3] for line in page.split("## Repaired")[1].splitlines()]
    assert first == [line.split(" | ")[:3] for line in written.split("## Repaired")[1].splitlines()]


def test_the_page_compares_the_arms():
    def median(bug: str, arm: str, found: bool, executions: int, cpu: float) -> CellResult:
        one = HuntCell(bug, True, "atheris", arm, 1, 900)
        return CellResult(one, found, executions, 9.0, cpu_seconds=cpu)

    results = [
        *(median("M1", OURS, True, 300, 0.5), median("M1", PLAIN, True, 200, 1.5)),
        *(median("M2", OURS, True, 800, 2.5), median("M2", PLAIN, False, 900, 1.5)),
        *(median("M3", OURS, False, 900, 0.5), median("M3", PLAIN, False, 900, 1.5)),
        median("M4", OURS, True, 1, 0.1),
    ]
    page = zoo_page(tuple(BUGS.values()), results)
    assert "Of 3 bugs that both arms ran on, ours needed fewer executions for 1 and less" in page
    assert "less time for 2." in page


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
    assert json.loads(capsys.readouterr().out) == {
        "schema": "guestemu.zoo.run/1",
        "bugs": [],
        "false_positives": 0,
    }
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
