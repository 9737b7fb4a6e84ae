# SPDX-License-Identifier: GPL-2.0-or-later
"""The list, a whole quick run, the campaign figures' reading of other programs, the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from held import DEADLINE_S

from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.bench import exponents, fuzzing, suite
from guestemu.bench.peer import Harness
from guestemu.cli.main import main

TIMED = [
    entry.name
    for entry in suite.entries()
    if not entry.name.startswith(("fuzz-", "peer-", "growth-"))
]


def test_every_figure_is_listed_with_what_it_measures() -> None:
    assert len({entry.name for entry in suite.entries()}) == len(suite.entries())
    assert all(len(entry.summary) > 20 for entry in suite.entries())
    assert {"execution", "execution-checks", "hypercall-loop", "fuzz-conversion"} <= {
        entry.name for entry in suite.entries()
    }


def test_unknown_figure_is_bad_input_that_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"--only exection: .*execution-checks"):
        suite.choose(["exection"])


def test_choice_keeps_the_order_of_the_suite() -> None:
    assert suite.choose(["decode", "execution"]) == ("execution", "decode")


@pytest.mark.soak
def test_a_quick_run_measures_everything_that_is_timed_here() -> None:
    steps: list[str] = []
    figures = list(suite.run(TIMED, rounds=1, turn=1e-4, progress=steps.append))
    assert [figure.name for figure in figures] == TIMED
    for figure in figures:
        if figure.note:
            continue
        assert figure.value is not None
        assert figure.value > 0
        assert figure.floor is not None
        assert figure.ratio == pytest.approx(
            figure.value / figure.floor if figure.unit == "us" else figure.floor / figure.value,
            rel=0.02,
        )
    assert "round 1 of 1" in steps


def test_campaign_rate_is_read_from_its_json() -> None:
    assert fuzzing.parse_campaign(b'{"executions": 5, "execs_per_second": 2.5, "findings": []}')
    assert fuzzing.parse_campaign(b"") is None
    assert fuzzing.parse_campaign(b'{"executions": 5}') is None


def test_null_rate_is_read_from_the_last_line_of_libfuzzer() -> None:
    assert fuzzing.parse_null("#9\nDone 500 runs in 5 second(s)\n") == 100
    assert fuzzing.parse_null("nothing") is None


def test_a_campaign_beside_the_empty_target(monkeypatch) -> None:
    said = b'{"executions": 100, "execs_per_second": 50.0}'
    done = subprocess.CompletedProcess([], 0, said, b"")
    commands: list[list[str]] = []

    def run(arguments: list[str], seconds: int) -> subprocess.CompletedProcess[bytes]:
        commands.append(arguments)
        return done

    monkeypatch.setattr(fuzzing, "run_module", run)
    figure = fuzzing.measure_target("hypercall", 1, 200.0)
    (command,) = commands
    where = Path(command[command.index("--workdir") + 1])
    assert not where.is_relative_to(Path.cwd())  # nothing is left where the user stands
    assert not where.exists()
    assert (figure.name, figure.value, figure.floor, figure.ratio) == (
        "fuzz-hypercall",
        50.0,
        200.0,
        4.0,
    )


def test_a_failed_campaign_is_a_note(monkeypatch) -> None:
    done = subprocess.CompletedProcess([], 3, b"", b"guestemu: no such thing\n")
    monkeypatch.setattr(fuzzing, "run_module", lambda arguments, seconds: done)
    figure = fuzzing.measure_target("hypercall", 1, 200.0)
    assert figure.value is None
    assert "no such thing" in figure.note


def test_without_atheris_the_campaign_figures_say_so(monkeypatch) -> None:
    monkeypatch.setattr(fuzzing, "why_not", lambda: "atheris is not installed")
    (figure,) = suite.run(["fuzz-hypercall"])
    assert figure.value is None
    assert figure.note == "atheris is not installed"


def test_json_has_the_keys_that_programs_rely_on(capsys) -> None:
    assert main(["bench", "--only", "decode", "--rounds", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    (figure,) = json.loads(out)["figures"]
    assert {"name", "value", "unit", "floor", "ratio"} <= figure.keys()
    assert figure["name"] == "decode"
    assert "round 1 of 1" in err


def test_list_and_table(capsys) -> None:
    assert main(["bench", "--list"]) == 0
    assert "hypercall-loop" in capsys.readouterr().out
    assert main(["bench", "--only", "decode", "--rounds", "1"]) == 0
    assert "RATIO" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--rounds", "0"], ["--only", "nothing"], ["--rounds", "many"]]
)
def test_bad_options_are_one_line_and_status_2(capsys, arguments) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_one_op_is_measured_beside_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str], seconds: int) -> subprocess.CompletedProcess[bytes]:
        out = b"1e-06\n" if arguments[-1] == "c" else b"4e-06\n"
        return subprocess.CompletedProcess(arguments, 0, out, b"")

    monkeypatch.setattr(fuzzing, "run_module", run)
    figure = fuzzing.measure_one_op("hypercall", 10, 3)
    assert (figure.name, figure.value, figure.floor, figure.ratio) == (
        "fuzz-hypercall-1",
        250_000,
        1_000_000,
        4,
    )
    failed = subprocess.CompletedProcess([], 1, b"", b"no compiler")
    monkeypatch.setattr(fuzzing, "run_module", lambda arguments, seconds: failed)
    assert fuzzing.measure_one_op("hypercall", 10, 3).value is None


def test_a_peer_is_given_fewer_executions_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(arguments: list[str], seconds: int) -> subprocess.CompletedProcess[bytes]:
        commands.append(arguments)
        out = b"2e-05\n" if arguments[0] == "guestemu.bench.peer" else b"5e-06\n"
        return subprocess.CompletedProcess(arguments, 0, out, b"")

    monkeypatch.setattr(fuzzing, "run_module", run)
    figure = fuzzing.measure_peer("atheris", 400, 1)
    assert commands == [
        ["guestemu.bench.one_op", "hypercall", "400"],
        ["guestemu.bench.peer", "atheris", "100"],
    ]
    assert (figure.value, figure.floor, figure.ratio) == (200_000, 50_000, 0.25)


def test_the_peer_s_harness_judges_answer_and_record() -> None:
    harness = Harness()
    harness.call(KVM_HC_MAP_GPA_RANGE, 0x5000, 2, 0)
    assert harness.shared == {5, 6}
    harness.call(KVM_HC_MAP_GPA_RANGE, 0x5001, 2, 0)
    harness.call(KVM_HC_MAP_GPA_RANGE, 0x5000, 2, MAP_GPA_RANGE_ENCRYPTED)
    harness.call(3, 0, 0, 0)
    assert harness.shared == set()
    harness.handle = lambda number, gpa, pages, attributes: 0  # type: ignore[method-assign]
    for arguments in ((3, 0, 0, 0), (KVM_HC_MAP_GPA_RANGE, 0, 1, 0)):
        with pytest.raises(AssertionError):
            harness.call(*arguments)


@pytest.mark.atheris
@pytest.mark.parametrize("tool", fuzzing.PEERS)
def test_a_peer_runs(tool: str) -> None:
    pytest.importorskip("atheris")
    done = fuzzing.run_module(["guestemu.bench.peer", tool, "50"], DEADLINE_S)
    assert float(done.stdout) > 0, done.stderr.decode()


def test_growth_is_the_exponent_of_time_against_size() -> None:
    assert exponents.exponent({2: 4.0, 4: 16.0, 16: 256.0}) == pytest.approx(2)
    assert exponents.exponent({2: 3.0, 4: 3.0, 16: 3.0}) == pytest.approx(0)
    (figure,) = suite.run(["growth-ranges"], rounds=1, turn=1e-4)
    assert (figure.unit, figure.floor, figure.ratio) == ("exponent", None, None)
    assert isinstance(figure.value, float)


@pytest.mark.soak
def test_every_growth_can_be_measured() -> None:
    figures = list(suite.run(list(exponents.FIGURES), rounds=1, turn=1e-4))
    assert [figure.name for figure in figures] == list(exponents.FIGURES)


@pytest.mark.atheris
@pytest.mark.parametrize(
    "target",
    [
        target if target == "hypercall" else pytest.param(target, marks=pytest.mark.soak)
        for target in fuzzing.ONE_OP_TARGETS
    ],
)
def test_one_op_runs_under_atheris(target: str) -> None:
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "guestemu.bench.one_op", target, "300"],
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
