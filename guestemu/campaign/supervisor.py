# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a campaign: starts workers, adds up what they report, replaces the ones that die.

Workers are processes because libFuzzer never returns and because a defect of the CPU emulator may
kill one: its input is kept, it is started again for the rest of the campaign, and the death is
reported as infrastructure, never as a finding. Where a user's host runs in the worker, the death is
that host's: the worker that is started next files the finding, and runs programs in a scout first
(runner/scout.py).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

import msgspec

from guestemu.abi.errors import GuestemuError, InputError, MissingError
from guestemu.campaign.figures import Figures, WorkerFigures, merge_counts
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.session import Report, add_lengths, median_length
from guestemu.campaign.store import Store
from guestemu.campaign.worker import (
    Message,
    WorkerConfig,
    WorkerFailure,
    input_path,
    read_noted_input,
    was_identifying,
)
from guestemu.host.calls import how_it_ended
from guestemu.host.native.host import IN_PROCESS, is_native
from guestemu.processes import EndSignals, end_signals_held
from guestemu.program.program import Header

_TICK: Final = 0.25
_STATS_EVERY: Final = 2.0
_HANG: Final = 60.0
"""Seconds without a report after which a worker counts as dead."""

_PATIENCE: Final = 5.0
"""Seconds a worker has to end after it was asked to."""

_MAX_DEATHS: Final = 20
_CHUNK: Final = 1 << 16
_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
)
"""Signals by which a process dies of its own fault: its input is not run again."""

_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM})
"""Signals by which a process is ended from outside, or by a lack of memory."""

_TO_FILE: Final = 1.0
"""Seconds that a worker has at the end of a campaign to file how the one before it ended."""


class Worker:
    """One process and the last it said. `lives` are the last reports of the processes before."""

    def __init__(self, config: WorkerConfig, store: Store) -> None:
        self.config = config
        self.lives: list[Report] = []
        self.report: Report | None = None
        self.failure: WorkerFailure | None = None
        self.is_done = False
        self.is_killed_for_hanging = False
        self._store = store
        self._rest = b""
        self._heard = time.monotonic()
        self.process = self._start(config)

    def _start(self, config: WorkerConfig) -> subprocess.Popen[bytes]:
        self._heard = time.monotonic()
        log = self._store.infrastructure / f"worker-{config.index}.log"
        try:
            with log.open("ab") as file:
                return subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "guestemu.campaign.worker",
                        msgspec.json.encode(
                            msgspec.structs.replace(config, began=self._heard)
                        ).decode(),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    start_new_session=True,
                )
        except OSError as error:
            raise InputError(
                f"{log}: {error.strerror}; make room there or name another place with --workdir"
            ) from error

    @property
    def pipe(self) -> int:
        """The descriptor that the reports come from."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def read(self) -> bool:
        """Takes what has come; False at the end of the process's output."""
        data = os.read(self.pipe, _CHUNK)
        if not data:
            return False
        self._heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = msgspec.json.decode(line, type=Message)
            self.report = message.report or self.report
            self.failure = message.failure or self.failure
        return True

    @property
    def ran_code_of_the_user(self) -> bool:
        """Whether a user's host runs in the process, which it may end."""
        header = self.config.header
        in_process = header.host.endswith(IN_PROCESS) or not is_native(header.host)
        return bool(header.plugin) and in_process

    def is_hanging(self) -> bool:
        """No report for too long."""
        return time.monotonic() - self._heard > _HANG

    def restart(self, seconds: float | None, death: str = "") -> None:
        """A new process for what is left, at most `seconds`; it files how the last one ended in a
        user's code, if it did."""
        if self.report is not None:
            self.lives.append(self.report)
        config = self.config
        execs = config.execs
        if execs is not None:
            execs = max(execs - sum(report.executions for report in self.lives), 0)
        self.report = None
        self.is_killed_for_hanging = False
        self._rest = b""
        config = msgspec.structs.replace(
            config,
            execs=execs,
            seconds=seconds,
            seed=config.seed + 7919 * len(self.lives) + 1,
            death=death,
        )
        with end_signals_held():
            self.process = self._start(config)

    def reports(self) -> Iterator[Report]:
        """The last report of each life."""
        yield from self.lives
        if self.report is not None:
            yield self.report


class Supervisor:
    """A campaign that runs. `watch` gets the figures every quarter of a second; `name` is part of
    the names of inputs at which a worker died (default: this process's id)."""

    def __init__(
        self,
        configs: list[WorkerConfig],
        store: Store,
        watch: Callable[[Figures], None],
        name: str = "",
    ) -> None:
        self._store = store
        self._watch = watch
        self._name = name or str(os.getpid())
        self._start = time.monotonic()
        self._seconds = configs[0].seconds
        self._until = configs[0].until_finding
        store.lock()
        self._infrastructure: list[str] = store.repair()
        self._deaths: list[str] = []
        self._before = with_settled(store.load_counts(), store)
        self._old = len(self._before)
        self._next_stats = self._start + _STATS_EVERY
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        try:
            for config in configs:
                with end_signals_held():
                    worker = Worker(config, store)
                    self._workers.append(worker)
                self._selector.register(worker.pipe, selectors.EVENT_READ, worker)
        except BaseException:
            self._kill()
            raise

    def run(self, over: threading.Event | None = None) -> Figures:
        """Until every worker is done, or Ctrl-C, SIGTERM or SIGHUP (then `is_interrupted` is
        set). With `over` signals are left alone, so that it runs in any thread, and that event
        ends it.

        Raises `InputError` or `MissingError` with the words of a worker that met one, and
        `GuestemuError` when workers cannot live.
        """
        is_interrupted = False
        signals = EndSignals() if over is None else contextlib.nullcontext()
        try:
            with signals:
                self._run_until(over)
        except KeyboardInterrupt:
            is_interrupted = True
            self._ask_to_end()
        except GuestemuError:
            self._ask_to_end()
            self._keep()
            raise
        finally:
            self._kill()
        self._infrastructure += self._store.repair()
        self._tell_unsettled()
        figures = msgspec.structs.replace(self._keep(), is_interrupted=is_interrupted)
        self._clean()
        return figures

    def _run_until(self, over: threading.Event | None) -> None:
        """Until every worker is done. Raises KeyboardInterrupt when it is to end earlier."""
        while not all(worker.is_done for worker in self._workers):
            if over is not None and over.is_set():
                raise KeyboardInterrupt
            self._turn()
            if self._until is not None and self._found() >= self._until:
                self._ask_to_end()
                return

    def _found(self) -> int:
        """New findings of this run."""
        reports = [report.findings for worker in self._workers for report in worker.reports()]
        return len(merge_counts([self._before, *reports])) - self._old

    def _keep(self) -> Figures:
        """Writes down what is known at the end, and gives it back."""
        self._before = with_settled(self._before, self._store, self._reported())
        figures = self.figures()
        self._store.save_counts(figures.findings)
        self._store.add_stats(msgspec.json.encode(figures.line()))
        return figures

    def _reported(self) -> set[str]:
        reports = [report for worker in self._workers for report in worker.reports()]
        return {found.key for report in reports for found in report.findings}

    def _tell_unsettled(self) -> None:
        left = len(self._store.unsettled())
        if left:
            self._infrastructure.append(
                f"{left} violation{'s are' if left > 1 else ' is'} in the journal, not minimised "
                "yet; --resume files them"
            )

    def figures(self) -> Figures:
        """What is known now."""
        reports = [report for worker in self._workers for report in worker.reports()]
        seconds = time.monotonic() - self._start
        executions = sum(report.executions for report in reports)
        lengths = add_lengths(report.lengths for report in reports)
        return Figures(
            seconds=round(seconds, 3),
            executions=executions,
            execs_per_second=round(self._rate(), 1),
            median_ops=median_length(lengths),
            lengths=lengths,
            corpus_size=self._store.corpus_size(),
            guest_blocks=max((report.guest_blocks for report in reports), default=0),
            model_states=max((report.model_states for report in reports), default=0),
            distinct_programs=sum(report.distinct for report in reports),
            near_misses=max((report.near_misses for report in reports), default=0),
            space=next((report.space for report in reports if report.space is not None), None),
            is_exhausted=all(
                worker.report is not None and worker.report.is_exhausted for worker in self._workers
            ),
            last_new_s=max((report.last_new_s for report in reports), default=0.0),
            findings=merge_counts([self._before, *(report.findings for report in reports)]),
            unstable=list(dict.fromkeys(line for report in reports for line in report.unstable)),
            infrastructure=list(self._infrastructure),
            workers=[
                WorkerFigures(
                    worker.config.index,
                    sum(report.executions for report in worker.reports()),
                    _rate_of(worker.report),
                    len(worker.lives),
                    worker.is_done,
                )
                for worker in self._workers
            ],
        )

    def _rate(self) -> float:
        """Executions a second of the workers' own time, added up."""
        return sum(
            sum(report.executions for report in worker.reports())
            / max(sum(report.seconds for report in worker.reports()), 1e-9)
            for worker in self._workers
            if any(worker.reports())
        )

    def _turn(self) -> None:
        for key, _ in self._selector.select(_TICK):
            worker: Worker = key.data
            if not worker.read():
                self._selector.unregister(key.fd)
                self._end_of(worker)
        for worker in self._workers:
            if not worker.is_done and worker.is_hanging():
                worker.is_killed_for_hanging = True
                worker.process.send_signal(signal.SIGUSR1)  # its stack goes into its log
                time.sleep(_TICK)
                worker.process.kill()
        figures = self.figures()
        self._watch(figures)
        if time.monotonic() >= self._next_stats:
            self._next_stats = time.monotonic() + _STATS_EVERY
            self._store.add_stats(msgspec.json.encode(figures.line()))
            self._store.save_counts(figures.findings)

    def _end_of(self, worker: Worker) -> None:
        """A worker's output ended: it is done, it cannot go on, or it died."""
        status = worker.process.wait()
        if worker.process.stdout is not None:
            worker.process.stdout.close()
        if worker.failure is not None:
            _raise(worker.failure, self._store, worker.config.index)
        if worker.report is not None and worker.report.is_final:
            worker.is_done = True
            return
        place = input_path(self._store, worker.config.index)
        noted = read_noted_input(place)
        number = len(self._deaths) + 1
        is_hanging = worker.is_killed_for_hanging
        is_users = worker.ran_code_of_the_user and (is_hanging or -status not in _FROM_OUTSIDE)
        is_crash = -status in _CRASHES or is_users or is_hanging
        kept = self._store.save_death(f"{self._name}-{number}", noted, is_crash and bool(noted))
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if is_hanging:
            how = f"silence for {_HANG:g} s (killed)"
        death = f"worker {worker.config.index} died of {how}; its input is in {kept}"
        self._deaths.append(death)
        if not is_users:
            self._infrastructure.append(death)
        self._infrastructure += self._store.repair()
        if number > _MAX_DEATHS:
            raise _keep_dying(worker.config.header, death)
        is_filed = is_users and bool(noted) and not was_identifying(place)
        left = self._left()
        if left is not None and is_filed:
            left = max(left, _TO_FILE)
        if left is not None and left <= 0:
            worker.is_done = True
            return
        worker.restart(left, how_it_ended(status) if is_filed else "")
        self._selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _left(self) -> float | None:
        """Seconds of the campaign that are left."""
        if self._seconds is None:
            return None
        return self._seconds - (time.monotonic() - self._start)

    def _ask_to_end(self) -> None:
        """SIGTERM to all workers, then their last reports, as far as they come."""
        for worker in self._workers:
            if not worker.is_done:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.terminate()
        end = time.monotonic() + _PATIENCE
        with contextlib.suppress(KeyboardInterrupt):
            while self._selector.get_map() and time.monotonic() < end:
                for key, _ in self._selector.select(_TICK):
                    ending: Worker = key.data
                    if not ending.read():
                        self._selector.unregister(key.fd)

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
            if worker.process.stdout is not None:
                worker.process.stdout.close()
        self._selector.close()
        self._store.unlock()

    def _clean(self) -> None:
        """Removes what only a living worker needs, and empty logs."""
        for worker in self._workers:
            input_path(self._store, worker.config.index).unlink(missing_ok=True)


def _keep_dying(header: Header, last: str) -> GuestemuError:
    """The end of a campaign whose workers die again and again: of the user's own code, if there is
    any, else of a defect of guestemu."""
    if not header.plugin:
        return GuestemuError(f"workers keep dying: {last}")
    return InputError(
        f"host {header.host!r}: the processes that run it keep dying ({last}); a crash in the code "
        "of a Python host ends its process: run the code that crashes as --host cmd:COMMAND"
    )


def with_settled(
    counts: list[FindingCount], store: Store, others: Collection[str] = ()
) -> list[FindingCount]:
    """`counts` and, for findings in the journals that neither they nor `others` have, one each:
    their worker died between filing and reporting."""
    known = {found.key for found in counts}
    new = [found for found in store.settled() if found.key not in known and found.key not in others]
    return merge_counts([counts, new])


def _rate_of(report: Report | None) -> float:
    if report is None or not report.seconds:
        return 0.0
    return round(report.executions / report.seconds, 1)


def _raise(failure: WorkerFailure, store: Store, index: int) -> None:
    if failure.is_input:
        raise InputError(failure.message)
    if failure.is_missing:
        raise MissingError(failure.message)
    log = store.infrastructure / f"worker-{index}.log"
    raise GuestemuError(f"worker {index}: {failure.message} (traceback in {log})")
