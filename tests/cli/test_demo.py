# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration, act by act."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from guestemu import demo
from guestemu.abi.errors import InputError
from guestemu.cli.main import find_verbs
from guestemu.demo import Act, acts, main, perform, play, tell_campaign

FOUND = {
    "executions": 1000,
    "execs_per_second": 99.6,
    "findings": [
        {"key": "status:k", "check": "status", "program": "p", "first_seen_s": 1.26, "count": 3}
    ],
    "corpus_size": 4,
}


def test_the_first_act_replays_the_recorded_trace(capfd: pytest.CaptureFixture[str]) -> None:
    assert perform(1, acts(1, Path("w"))[0])
    out = capfd.readouterr().out
    assert out.startswith("\nAct 1: A real kernel's DMA allocations, on a guest\n")
    assert f"$ guestemu dma {demo.TRACE}\n" in out
    assert "machine: violations" in out


def test_an_unexpected_status_fails_the_act(capfd: pytest.CaptureFixture[str]) -> None:
    act = Act("t", "a", ("dma", "missing.trace"))
    assert not perform(1, act)
    assert perform(1, msgspec.structs.replace(act, expected=frozenset({2})))
    assert "missing.trace" in capfd.readouterr().err


def test_findings_of_the_campaign_are_told_and_no_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_campaign(json.dumps(FOUND).encode())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1000 programs ran, 100 per second; 1 findings"
    assert lines[1] == "  status: status:k (after 1.3 s, 3 times)"
    assert "no failure here" in lines[-1]
    assert 1 in acts(1, Path("w"))[1].expected


def test_the_campaign_runs_for_its_time_in_a_new_directory(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    act = acts(1, tmp_path / "fuzz")[1]
    assert act.arguments[:4] == ("fuzz", "conversion", "--time", "1")
    assert perform(2, act)
    assert "programs ran" in capfd.readouterr().out
    assert list((tmp_path / "fuzz").iterdir())


def test_output_that_is_no_campaign_is_refused() -> None:
    with pytest.raises(InputError, match="run it by hand"):
        tell_campaign(b"oops")


@pytest.mark.parametrize(("good", "status"), [((True, True), 0), ((True, False), 1)])
def test_all_acts_must_go_well(
    good: tuple[bool, ...], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "_ROOT", tmp_path)
    for name in (demo.TRACE, demo.CORPORA):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(demo, "acts", lambda *_: tuple(Act(str(g), "", ()) for g in good))
    monkeypatch.setattr(demo, "perform", lambda _number, act: act.title == "True")
    assert play(1) == status


def test_outside_of_a_checkout_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_ROOT", tmp_path)
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{demo.TRACE} is not there; run `make demo` in a checkout" in err


def test_no_time_to_fuzz_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--time", "0"]) == 2
    assert "--time 0: give at least 1 second" in capsys.readouterr().err


def test_ctrl_c_in_an_act_ends_the_demonstration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_seconds: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "play", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "guestemu: interrupted\n"


def test_every_act_is_a_verb() -> None:
    assert {act.arguments[0] for act in acts(1, Path("w"))} <= find_verbs().keys()
