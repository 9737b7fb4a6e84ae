# SPDX-License-Identifier: GPL-2.0-or-later
"""Worker processes for batches of files: results as they come, and no process left at the end.

An executor of the standard library waits at its end, and at the interpreter's, for the batches that
run: Ctrl-C hangs as long as a program does. Here the parent kills its workers however it is left,
and they die with it when it is killed itself. Each result is sent when it is there, so that a
worker that dies loses the file that it ran, and nothing else.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Final, Generic, TypeAlias, TypeVar

from guestemu.machine.watchdog import GAVE_UP
from guestemu.processes import follow_parent

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Context: TypeAlias = ForkContext | SpawnContext

_TICK_S: Final = 1.0
_FAILED: Final = 70


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
        self.heard = time.monotonic()

    def give(self, batch: Sequence[Item]) -> None:
        """Hands a batch over; a process that is dead shows when it is read."""
        self.open = list(batch)
        self.heard = time.monotonic()
        try:
            self.connection.send(batch)
        except OSError:
            return

    def is_silent(self, patience: float) -> bool:
        """It works and has said nothing for `patience` seconds."""
        return bool(self.open) and time.monotonic() - self.heard > patience

    def answer(self) -> tuple[Item, Answer]:
        """The next item of its batch with its answer. Raises EOFError where none comes any more."""
        if not self.connection.poll():
            raise EOFError
        answer: Answer = self.connection.recv()
        self.heard = time.monotonic()
        return self.open.pop(0), answer

    def kill(self) -> int | None:
        """Ends the process; its exit status, negative after a signal."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


def _serve(connection: Connection, work: Callable[[Sequence[Item]], Iterable[Answer]]) -> None:
    """The worker's side: batches in, answers out."""
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        while True:
            batch = connection.recv()
            for answer in work(batch):
                connection.send(answer)
    except EOFError:
        return
    except Exception:
        traceback.print_exc()
        os._exit(_FAILED)


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
    stuck: Callable[[Item], Answer] | None = None,
    patience: float = math.inf,
) -> Iterator[tuple[Item, Answer]]:
    """Each item with its answer, as they come, from up to `jobs` processes. `work` answers the
    items of a batch in their order. An item whose process died has no answer. `stuck`, if set,
    answers one whose process gave up (watchdog.py), or said nothing for `patience` seconds."""
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
            busy = {worker.connection: worker for worker in workers if worker.open}
            heard = [busy[one] for one in wait(list(busy), _TICK_S) if isinstance(one, Connection)]
            for worker in heard or [one for one in workers if one.is_silent(patience)]:
                try:
                    yield worker.answer()
                except (EOFError, OSError):
                    workers.remove(worker)
                    item, *rest = worker.open
                    if rest:
                        waiting.appendleft(rest)
                    is_stuck = worker.kill() == GAVE_UP or worker.is_silent(patience)
                    if stuck is not None and is_stuck:
                        yield item, stuck(item)
    finally:
        for worker in workers:
            worker.kill()
