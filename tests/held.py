# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs `guestemu` as a user does, and holds it at a known point. Where neither signals nor the
process itself matter, `run_here` saves the start of a Python.

A test that kills or interrupts a process must know where that process is. It never sleeps for it
and never counts on work that is "long enough": a process is held by `held_hosts.py`, a host that
waits for a file. Deadlines here end a test that hangs; no machine is so slow that they matter.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HOSTS = Path(__file__).with_name("held_hosts.py")
DEADLINE_S = 300.0
_POLL_S = 0.02
_started: list[subprocess.Popen[str]] = []


def is_whole_json(path: Path) -> bool:
    """Whether the object in a file is written to its end: some make the file first."""
    return path.exists() and path.read_text().rstrip().endswith("}")


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Returns when `condition` holds; fails if it never does."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"never saw {what}"
        time.sleep(_POLL_S)


def run_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`guestemu` with `arguments` in this process: its status and what it prints."""
    from guestemu.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = main(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def start(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """`guestemu` with `arguments` in a session (and process group) of its own, running. What still
    runs when the test is over is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "guestemu", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    _started.append(process)
    return process


def kill_the_rest() -> None:
    """Ends what tests have left running."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr of a process that ends by itself. Also waits for the end of
    whatever holds its stdout."""
    output, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output, errors


def is_alive(pid: int) -> bool:
    """Whether the process runs. One that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Running processes below `pid`, at any depth."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            with contextlib.suppress(OSError):
                words = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(words[1])
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        below = [child for child, its_parent in parents.items() if its_parent == parent]
        found += below
        todo += below
    return found


class Hold:
    """A directory that hosts of `held_hosts.py` wait in. `environment` makes a process do so at
    its access number `after`."""

    def __init__(self, directory: Path, after: int = 0) -> None:
        directory.mkdir()
        self._directory = directory
        self.environment = {
            "GUESTEMU_TEST_HOLD": str(directory),
            "GUESTEMU_TEST_HOLD_AFTER": str(after),
        }

    def held(self) -> list[int]:
        """The running processes that wait now."""
        pids = [int(path.name.removeprefix("held-")) for path in self._directory.glob("held-*")]
        return [pid for pid in pids if is_alive(pid)]

    def wait(self, command: subprocess.Popen[str], count: int = 1) -> list[int]:
        """The processes of `command` that wait, as soon as there are `count`."""
        wait_for(
            lambda: len(self.held()) >= count or command.poll() is not None,
            f"{count} held processes",
        )
        assert command.poll() is None, command.communicate()
        return self.held()

    def release(self) -> None:
        """Lets all of them go on."""
        (self._directory / "go").touch()
