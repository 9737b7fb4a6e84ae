# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that runs batches of programs: each `Task` on stdin, its `JobAnswer` on stdout.

It keeps the testbed of the last header, ends when there was nothing to do for `IDLE_S`, and dies
with the thread of the Dask worker that started it.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Final

from guestemu.abi.errors import InputError, MissingError
from guestemu.campaign.cluster.jobs import (
    JobAnswer,
    ReplayBatch,
    RunBatch,
    Task,
    decode_task,
    encode,
    read_frame,
    write_frame,
)
from guestemu.campaign.cluster.wire import identity
from guestemu.host.permission import Permissions
from guestemu.parts import load_parts
from guestemu.processes import follow_parent
from guestemu.program.text import parse_bytes
from guestemu.replay.suite import Bench, replay_bytes

IDLE_S: Final = 60.0

_STDOUT: Final = 1
_STDERR: Final = 2


def replay(number: int, batch: ReplayBatch, bench: Bench) -> JobAnswer:
    """Judges every file."""
    allowed = Permissions(tuple(map(Path, batch.plugins)))
    return JobAnswer(
        number, [replay_bytes(name, data, bench, allowed) for name, data in batch.files]
    )


def run(number: int, batch: RunBatch, bench: Bench) -> JobAnswer:
    """Runs every program; the names of its failing checks."""
    checks: list[list[str]] = []
    try:
        for place, data in enumerate(batch.programs):
            done = bench.run(parse_bytes(data, f"program {place}"))
            checks.append(sorted({found.check for found in done.outcome.violations}))
    except (InputError, MissingError) as error:
        is_input = isinstance(error, InputError)
        return JobAnswer(number, failure=str(error), is_input=is_input, is_missing=not is_input)
    return JobAnswer(number, checks=checks)


def work(task: Task, bench: Bench) -> JobAnswer:
    """Runs whichever batch it is, if both ends have the same guestemu."""
    own = identity()
    if task.sender != own:
        text = f"--cluster: a worker has {own}, this is {task.sender}; install the same on both"
        return JobAnswer(task.number, failure=text, is_missing=True)
    if isinstance(task.batch, ReplayBatch):
        return replay(task.number, task.batch, bench)
    return run(task.number, task.batch, bench)


def main() -> None:
    """See the module's docstring."""
    follow_parent()
    answers = os.fdopen(os.dup(_STDOUT), "wb")
    os.dup2(_STDERR, _STDOUT)  # a plug-in may print
    tasks = sys.stdin.buffer
    load_parts()
    bench = Bench()
    while select.select([tasks], [], [], IDLE_S)[0]:
        try:
            task = decode_task(read_frame(tasks))
        except EOFError:
            break
        write_frame(answers, encode(work(task, bench)))
    bench.close()


if __name__ == "__main__":
    main()
