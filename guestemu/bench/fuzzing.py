# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of campaigns: executions per second under atheris, each in a process of its own.

libFuzzer never returns, so these run as commands; the clock is theirs. Campaigns are measured once
per run, one after the other, by wall time; one-op programs in interleaved rounds by CPU time.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from statistics import median
from typing import Final

import msgspec

from guestemu.bench.figure import Figure

TARGETS: Final = (
    *("hypercall", "conversion", "msr", "sync", "firmware", "migration", "stream", "mirror"),
    *("lockstep", "psc", "hostile-host", "mapgpa"),
)
PEERS: Final = {"atheris": 4, "hypothesis": 100}
"""How many times fewer executions each peer is given."""
_PEERS_TARGET: Final = "hypercall"
ONE_OP_TARGETS: Final = ("hypercall", "conversion")
_AGAINST: Final = "an empty atheris target"
_AGAINST_C: Final = "the same from C under the same libFuzzer"
_C_SPEED: Final = 5
_PATIENCE: Final = 60
_DONE: Final = re.compile(r"Done (\d+) runs in (\d+) second")


class TimedCampaign(msgspec.Struct):
    """What `guestemu fuzz --json` says, as far as it matters here."""

    executions: int
    execs_per_second: float


def why_not() -> str:
    """Why these figures cannot be measured here; empty if they can."""
    if importlib.util.find_spec("atheris") is None:
        return "atheris is not installed; install guestemu[fuzz]"
    if importlib.util.find_spec("guestemu.cli.fuzz") is None:
        return "this guestemu has no fuzz command"
    return ""


def parse_null(stderr: str) -> float | None:
    """Executions per second from libFuzzer's last line, None if it is not there."""
    done = _DONE.search(stderr)
    return int(done[1]) / max(1, int(done[2])) if done else None


def parse_campaign(stdout: bytes) -> float | None:
    """Executions per second from a campaign's JSON, None if that is not what it is."""
    try:
        return msgspec.json.decode(stdout, type=TimedCampaign).execs_per_second
    except msgspec.DecodeError:
        return None


def run_module(arguments: list[str], seconds: int) -> subprocess.CompletedProcess[bytes]:
    """Runs `python -m ARGUMENTS`, which should take `seconds`, for a minute more at most."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        check=False,
        timeout=seconds + _PATIENCE,
    )


def measure_null(seconds: int) -> float | None:
    """Executions per second of a target that does nothing."""
    done = run_module(["guestemu.bench.null_target", str(seconds)], seconds)
    return parse_null(done.stderr.decode(errors="replace"))


def campaign_rate(target: str, seconds: int, jobs: int = 1) -> float | str:
    """Executions per second of a campaign; a text where it failed."""
    try:
        with tempfile.TemporaryDirectory(prefix="guestemu-bench-") as directory:
            done = run_module(
                [
                    *("guestemu", "fuzz", target, "--engine", "atheris", "--time", str(seconds)),
                    *("--jobs", str(jobs), "--json", "--workdir", f"{directory}/work"),
                ],
                seconds,
            )
    except subprocess.TimeoutExpired:
        return f"the campaign did not end within {seconds + _PATIENCE} s"
    rate = parse_campaign(done.stdout)
    if rate:
        return rate
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"the campaign failed: {lines[-1] if lines else done.returncode}"


def measure_target(target: str, seconds: int, null: float | None) -> Figure:
    """Executions per second of a campaign, beside `null`."""
    name = f"fuzz-{target}"
    rate = campaign_rate(target, seconds)
    if isinstance(rate, str):
        return missing(name, rate)
    ratio = round(null / rate, 3) if null else None
    return Figure(name, round(rate, 1), "/s", null, ratio, _AGAINST)


def measure_one_op(target: str, executions: int, rounds: int) -> Figure:
    """Programs of one op of `target`, per second of CPU time, beside the same op from C; each
    round is one process of either kind."""
    floor = ["guestemu.bench.one_op", target, str(executions * _C_SPEED), "c"]
    return _beside(f"fuzz-{target}-1", _one_op(target, executions), floor, rounds, _AGAINST_C)


def measure_peer(tool: str, executions: int, rounds: int) -> Figure:
    """Programs of one hypercall per second of CPU time, beside a harness that `tool`'s user writes
    without guestemu (`guestemu.bench.peer`)."""
    peer = ["guestemu.bench.peer", tool, str(executions // PEERS[tool])]
    ours = _one_op(_PEERS_TARGET, executions)
    return _beside(f"peer-{tool}", ours, peer, rounds, f"{tool} with Unicorn's own binding")


def _one_op(target: str, executions: int) -> list[str]:
    return ["guestemu.bench.one_op", target, str(executions)]


def _beside(name: str, ours: list[str], floor: list[str], rounds: int, against: str) -> Figure:
    """Two modules that print the CPU seconds of an execution, in turns."""
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        spent, floor_spent = _printed(ours), _printed(floor)
        if spent is None or floor_spent is None:
            failed = ours if spent is None else floor
            return missing(name, f"python -m {' '.join(failed)} failed: run it to see why")
        pairs.append((spent, floor_spent))
    rate, floor_rate = (round(1 / median(side), 1) for side in zip(*pairs, strict=True))
    ratio = round(median(spent / beside for spent, beside in pairs), 3)
    return Figure(name, rate, "/s", floor_rate, ratio, against)


def _printed(command: list[str]) -> float | None:
    """The number that a module prints, None if the process failed."""
    try:
        return float(run_module(command, _PATIENCE).stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return None


def missing(name: str, note: str) -> Figure:
    """A figure that this machine cannot give."""
    return Figure(name, None, "/s", None, None, _AGAINST, note)
