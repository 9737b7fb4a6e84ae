# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of whole campaigns."""

from __future__ import annotations

import subprocess
import sys

import pytest
from held import DEADLINE_S

from guestemu.bench import fuzzing, long_runs


def test_two_jobs_are_measured_beside_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "campaign_rate", lambda _target, _seconds, jobs: 1000.0 * jobs)
    figure = long_runs.measure_jobs(1)
    assert (figure.value, figure.floor, figure.ratio) == (2000, 1000, 0.5)


def test_a_campaign_that_failed_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "campaign_rate", lambda *_: "the campaign failed: why")
    figure = long_runs.measure_jobs(1)
    assert figure.value is None
    assert figure.note == "the campaign failed: why"


def test_memory_is_early_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(output: bytes) -> None:
        done = subprocess.CompletedProcess([], 0, output, b"")
        monkeypatch.setattr(fuzzing, "run_module", lambda _arguments, _seconds: done)

    run(b"80.0 84.0\n")
    figure = long_runs.measure_memory(1000)
    assert (figure.value, figure.floor, figure.ratio, figure.unit) == (84, 80, 1.05, "MiB")
    assert "100 of 1,000" in figure.against
    run(b"")
    assert long_runs.measure_memory(1000).value is None


@pytest.mark.soak
@pytest.mark.atheris
def test_memory_of_a_real_campaign() -> None:
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "guestemu.bench.growth", "hypercall", "4000"],
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    early, late = map(float, done.stdout.split())
    assert 0 < early <= late < 1000
