# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `guestemu fuzz` as a user does, but for a Python of its own: the campaign's workers are
processes in any case. Tests of signals start one with `held.start`."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

from held import run_here

PLANTED = Path(__file__).parents[1] / "quality" / "planted_hosts.py"


def fuzz(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    return run_here("fuzz", *arguments, cwd=cwd)


def fuzz_json(*arguments: str, cwd: Path, status: int) -> dict[str, object]:
    done = fuzz(*arguments, "--json", cwd=cwd)
    assert done.returncode == status, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)
