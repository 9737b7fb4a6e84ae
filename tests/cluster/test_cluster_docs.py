# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of docs/cluster.md listen where they say, and nowhere else."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_command import listening
from held import DEADLINE_S, is_whole_json, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
HERE = "127.0.0.1"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="the extra `cluster` is not installed"
)


def documented(machine: str) -> list[str]:
    """The `dask` command that the page gives for a machine, its addresses replaced by HERE."""
    (line,) = re.findall(rf"^ +{machine}\$ (dask .*)$", PAGE.read_text(), re.MULTILINE)
    return [re.sub(r"192\.0\.2\.\d+", HERE, word) for word in shlex.split(line)]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
        process.wait(DEADLINE_S)


def test_documented_commands_listen_on_the_address_that_they_name(tmp_path, started):
    def start(words: list[str]) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            command = [sys.executable, "-m", *words]
            process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        started.append(process)
        return process

    scheduler_file = tmp_path / "scheduler.json"
    scheduler = start(
        [*documented("scheduler"), "--port", "0", "--scheduler-file", str(scheduler_file)]
    )
    wait_for(lambda: is_whole_json(scheduler_file) or scheduler.poll() is not None, "the scheduler")
    assert scheduler.poll() is None, (tmp_path / "log").read_text()
    address = json.loads(scheduler_file.read_text())["address"]
    words = documented("machine-1")
    words[words.index(f"tcp://{HERE}:8786")] = address
    words[words.index("--nthreads") + 1] = "1"
    worker = start(words)

    from distributed import Client

    with Client(address, timeout=DEADLINE_S) as client:
        client.wait_for_workers(1, timeout=DEADLINE_S)
        assert listening(scheduler.pid) == {HERE}
        assert listening(worker.pid) == {HERE}
