# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of whole campaigns: what a second worker brings, and whether memory stays flat."""

from __future__ import annotations

import subprocess
from statistics import median
from typing import Final

from guestemu.bench import fuzzing
from guestemu.bench.figure import Figure

TARGET: Final = "hypercall"
JOBS: Final = "fuzz-jobs-2"
MEMORY: Final = "fuzz-memory"
JOBS_HELP: Final = "executions per second of two workers on one corpus, beside one worker"
MEMORY_HELP: Final = "MiB of a fuzzing process at the end, beside a tenth of the executions"

_ROUNDS: Final = 3
_AGAINST_ONE: Final = "one worker"
_PATIENCE: Final = 600


def measure_jobs(seconds: int) -> Figure:
    """Two workers beside one, by wall time, in interleaved rounds: two cores must be free."""
    pairs: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        two, one = (fuzzing.campaign_rate(TARGET, seconds, jobs) for jobs in (2, 1))
        if isinstance(two, str) or isinstance(one, str):
            return fuzzing.missing(JOBS, two if isinstance(two, str) else str(one))
        pairs.append((two, one))
    rate, single = (round(median(side), 1) for side in zip(*pairs, strict=True))
    ratio = round(median(one / two for two, one in pairs), 3)
    return Figure(JOBS, rate, "/s", single, ratio, _AGAINST_ONE)


def measure_memory(executions: int) -> Figure:
    """The resident set of one fuzzing process, early and late."""
    against = f"after {executions // 10:,} of {executions:,} executions"
    command = ["guestemu.bench.growth", TARGET, str(executions)]
    try:
        early, late = map(float, fuzzing.run_module(command, _PATIENCE).stdout.split())
    except (ValueError, subprocess.TimeoutExpired):
        note = "python -m guestemu.bench.growth failed: run it to see why"
        return Figure(MEMORY, None, "MiB", None, None, against, note)
    return Figure(MEMORY, round(late, 1), "MiB", round(early, 1), round(late / early, 3), against)
