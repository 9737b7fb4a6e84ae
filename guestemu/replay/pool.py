# SPDX-License-Identifier: GPL-2.0-or-later
"""Worker processes for batches of files: results as they come, and no process left at the end.

An executor of the standard library waits at its end, and at the interpreter's, for the batches that
run: Ctrl-C hangs as long as a program does. Here the parent kills its workers however it is left,
and they die with it when it is killed itself. Each result is sent when it is there, so that a
worker that dies loses the file that it ran, and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeAlias, TypeVar

from guestemu.processes import follow_parent

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Context: TypeAlias = ForkContext | SpawnContext


class _Worker(Generic[Item, Answer]):
    """One process and the items of its batch that it has not answered."""

    def __init__(
        self, context: Context, work: Callable[[Sequence[Item]], Iterable[Answer]]
    ) -> None:
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.open: list[Item] = []

    def give(self, batch: Sequence[Item]) -> None:
        """Hands a batch over; a process that is dead shows when it is read."""
        self.open = list(batch)
        try:
            self.connection.send(batch)
        except OSError:
            return

    def kill(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[Sequence[Item]], Iterable[Answer]]) -> None:
    """The worker's side: batches in, answers out."""
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        for answer in work(batch):
            connection.send(answer)


def _context() -> Context:
    """Forked workers where no other thread can hold a lock: fresh ones spend longer on imports than
    on some hundred programs."""
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    if can_fork:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def run_batches(
    work: Callable[[Sequence[Item]], Iterable[Answer]],
    batches: Iterable[Sequence[Item]],
    jobs: int,
) -> Iterator[tuple[Item, Answer]]:
    """Each item with its answer, as they come, from up to `jobs` processes. `work` answers the
    items of a batch in their order. An item whose process died has no answer."""
    waiting = deque(batch for batch in batches if batch)
    context = _context()
    workers: list[_Worker[Item, Answer]] = []
    try:
        while waiting or any(worker.open for worker in workers):
            for worker in workers:
                if waiting and not worker.open:
                    worker.give(waiting.popleft())
            while waiting and len(workers) < jobs:
                workers.append(_Worker(context, work))
                workers[-1].give(waiting.popleft())
            for ready in wait([worker.connection for worker in workers if worker.open]):
                worker = next(one for one in workers if one.connection is ready)
                try:
                    answer: Answer = worker.connection.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    worker.kill()
                    if worker.open[1:]:
                        waiting.appendleft(worker.open[1:])
                    continue
                yield worker.open.pop(0), answer
    finally:
        for worker in workers:
            worker.kill()
