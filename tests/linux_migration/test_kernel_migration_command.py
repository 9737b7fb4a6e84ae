# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore kernel-migration` from the outside."""

from __future__ import annotations

import json
import signal

import pytest

from guestemu.cli import _migration_progress
from guestemu.cli.main import main

COMMAND = ("explore", "kernel-migration")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def guest(image_of) -> str:
    return f"linux:{image_of('6.1')}"


def answer(capsys: Captured, status: int, *arguments: str) -> dict[str, object]:
    assert main([*COMMAND, *arguments, "--json"]) == status
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_report_as_json(capsys: Captured, guest: str) -> None:
    found = answer(capsys, 0, "--guest", guest, "--every", "3000", "--leaf", "4k")
    assert found["points"] == 4
    assert [found[key] for key in ("differences", "lost_strict", "lost_defined")] == [0, 0, 0]
    assert found["tuples"] == {}
    assert float(str(found["migrations_per_second"])) > 0
    assert found["interrupted"] is False


def test_losses_are_findings(capsys: Captured, guest: str) -> None:
    arguments = ("--guest", guest, "--every", "3000", "--leaf", "4k", "--order", "status-first")
    found = answer(capsys, 1, *arguments)
    assert (found["points"], found["lost_defined"], found["lost_strict"]) == (4, 2, 2)


def test_a_refusal_as_text(capsys: Captured, guest: str) -> None:
    assert main([*COMMAND, "--guest", guest, "--sev", "snp"]) == 0
    assert "KVM_SEV_SEND_START: -EPERM" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_found(capsys: Captured, guest: str, monkeypatch) -> None:
    after = _migration_progress.ProgressWatcher.after
    seen = []

    def interrupt(self) -> None:
        seen.append(self)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        after(self)

    monkeypatch.setattr(_migration_progress.ProgressWatcher, "after", interrupt)
    found = answer(capsys, 130, "--guest", guest, "--every", "500", "--leaf", "4k")
    assert found["points"] == 3
    assert found["interrupted"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--path", "carrier-pigeon"), "plain, firmware"),
        (("--leaf", "1g"), "4k, 2m, both"),
        (("--order", "any"), "dirty-first, status-first"),
        (("--sev", "tme"), "sev, es, snp, tdx"),
        (("--guest", "snippet:6.1"), "linux:IMAGE"),
        (("--guest", "linux:/no/such/file"), "/no/such/file"),
        (("--every", "0"), "--every"),
    ],
)
def test_wrong_options_are_one_line(
    capsys: Captured, arguments: tuple[str, ...], words: str
) -> None:
    assert main([*COMMAND, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_options_of_explore_itself_are_refused_in_front(capsys: Captured) -> None:
    assert main(["explore", "--table", "kernel-migration"]) == 2
    assert "--table has no meaning with kernel-migration" in capsys.readouterr().err
