# SPDX-License-Identifier: GPL-2.0-or-later
"""A Dask cluster of separate processes on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from held import DEADLINE_S, Hold, is_whole_json, wait_for

HELD_AFTER = 700
"""Accesses of each campaign process: about half of what the campaigns here make."""


class Processes:
    """A scheduler and two workers without nannies: a worker that dies stays dead. The hosts of
    `held_hosts.py` wait in `hold`."""

    def __init__(self, directory: Path) -> None:
        self.hold = Hold(directory / "hold", after=HELD_AFTER)
        self._directory = directory
        self._file = directory / "scheduler.json"
        options = ("--scheduler-file", str(self._file), "--host", "127.0.0.1", "--no-dashboard")
        self.scheduler = self._start("scheduler", "--port", "0", *options)
        self.workers: list[subprocess.Popen[bytes]] = []
        wait_for(lambda: is_whole_json(self._file), "the scheduler")
        self.address = json.loads(self._file.read_text())["address"]
        for _ in range(2):
            self.workers.append(
                self._start(
                    *("worker", self.address, "--host", "127.0.0.1", "--no-dashboard"),
                    *("--no-nanny", "--nthreads", "1", "--local-directory", str(directory)),
                )
            )

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=self._directory,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.hold.environment},
            )

    def wait_for_workers(self) -> None:
        from distributed import Client

        with Client(self.address, timeout=DEADLINE_S) as client:
            client.wait_for_workers(2, timeout=DEADLINE_S)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    directory = tmp_path / "dask"
    directory.mkdir()
    processes = Processes(directory)
    try:
        processes.wait_for_workers()
        yield processes
    finally:
        processes.close()
