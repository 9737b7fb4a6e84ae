# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `guestemu` as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
PLANTED = TESTS / "quality" / "planted_hosts.py"
CRASHING = TESTS / "campaign" / "crashing_host.py"


def guestemu(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestemu", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
