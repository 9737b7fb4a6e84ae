# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `guestemu fuzz` as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from held import DEADLINE_S

PLANTED = Path(__file__).parents[1] / "quality" / "planted_hosts.py"


def fuzz(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestemu", "fuzz", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def fuzz_json(*arguments: str, cwd: Path, status: int) -> dict[str, object]:
    done = fuzz(*arguments, "--json", cwd=cwd)
    assert done.returncode == status, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)
