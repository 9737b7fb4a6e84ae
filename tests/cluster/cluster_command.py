# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `guestemu` as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from held import DEADLINE_S

TESTS = Path(__file__).parents[1]
PLANTED = TESTS / "quality" / "planted_hosts.py"
CRASHING = TESTS / "campaign" / "crashing_host.py"


def guestemu(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guestemu", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def listening(pid: int) -> set[str]:
    """The addresses on which the process or its children accept connections."""
    import psutil

    parent = psutil.Process(pid)
    return {
        one.laddr.ip
        for each in (parent, *parent.children(recursive=True))
        for one in each.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
