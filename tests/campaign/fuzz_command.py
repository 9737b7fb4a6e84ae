# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `guestemu fuzz` as a user does, but for a Python of its own: the campaign's workers are
processes in any case. Tests of signals start one with `held.start`."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from subprocess import CompletedProcess

from guestemu.cli.main import main

PLANTED = Path(__file__).parents[1] / "quality" / "planted_hosts.py"


def guestemu(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    """The status of the command, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = main(list(arguments))
    return CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def fuzz(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    return guestemu("fuzz", *arguments, cwd=cwd)


def fuzz_json(*arguments: str, cwd: Path, status: int) -> dict[str, object]:
    done = fuzz(*arguments, "--json", cwd=cwd)
    assert done.returncode == status, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)
