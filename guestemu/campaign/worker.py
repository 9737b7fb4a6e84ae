# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker: one session in a process of its own, started by the supervisor.

    python -m guestemu.campaign.worker CONFIG

CONFIG is a `WorkerConfig` as JSON. Reports go to stdout, one JSON object a line; whatever else is
printed (libFuzzer is chatty) goes to stderr. SIGTERM asks for the last report, SIGUSR1 for the
Python stack on stderr; the worker dies with the thread that started it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from guestemu.abi.errors import HostFailedError, InputError, MissingError
from guestemu.campaign.bounds import Bounds
from guestemu.campaign.engines import ENGINES
from guestemu.campaign.session import APART, LENGTH_SIZE, Plan, Report, Session
from guestemu.campaign.store import Store
from guestemu.campaign.targets import find_target
from guestemu.machine.watchdog import Watchdog
from guestemu.parts import load_parts
from guestemu.processes import follow_parent
from guestemu.program.binary import RECORD_SIZE
from guestemu.program.program import Header
from guestemu.report.trace.run import seconds_for
from guestemu.runner.scout import guard_process, may_end_process

_STDOUT: Final = 1
_STDERR: Final = 2
_LIMIT_S: Final = 8.0
"""Seconds of CPU time for a program on a user's host: its six-fold on the wall clock ends before
the supervisor takes the silence for a dead worker."""

STATUS_FAILED: Final = 70


class WorkerConfig(msgspec.Struct, frozen=True):
    """Everything a worker needs to know."""

    target: str
    header: Header
    engine: str
    workdir: str
    index: int
    seed: int
    faults: bool
    execs: int | None
    seconds: float | None
    is_shared: bool
    jobs: int = 1
    bounds: Bounds = Bounds()
    until_finding: int | None = None
    max_ops: int = 0
    """Ops in the longest program; 0: as the target has it."""
    began: float | None = None
    """When the process was started, by `time.monotonic`; see `Plan`."""
    death: str = ""
    """How the process before ended in the code of a user's host; its input is the one noted."""


class WorkerFailure(msgspec.Struct, frozen=True):
    """Why a worker cannot go on: an error that a user can mend (`is_input`, `is_missing`), or a
    defect of guestemu, whose traceback is in the worker's log."""

    message: str
    is_input: bool
    is_missing: bool


class Message(msgspec.Struct, frozen=True):
    """One line to the supervisor."""

    report: Report | None = None
    failure: WorkerFailure | None = None


def input_path(store: Store, index: int) -> Path:
    """Where worker `index` notes the input that it runs."""
    return store.infrastructure / f"worker-{index}.input"


def read_noted_input(path: Path) -> bytes:
    """The input that a dead worker was running; empty if it had not begun."""
    try:
        noted = path.read_bytes()
    except OSError:
        return b""
    size = int.from_bytes(noted[:LENGTH_SIZE], "little")
    size &= APART - 1
    return noted[LENGTH_SIZE : LENGTH_SIZE + size]


def was_identifying(path: Path) -> bool:
    """Whether a dead worker ran other programs, to identify what its input shows."""
    try:
        noted = path.read_bytes()
    except OSError:
        return False
    return bool(int.from_bytes(noted[:LENGTH_SIZE], "little") & APART)


def _note_inputs(session: Session, path: Path) -> None:
    size = LENGTH_SIZE + max(session.executor.max_size, RECORD_SIZE)
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        session.current = mmap.mmap(file.fileno(), size)


class _Pipe:
    """The way to the supervisor."""

    def __init__(self) -> None:
        self._fd = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)

    def send(self, message: Message) -> None:
        """One line; a supervisor that is gone ends this process."""
        data = msgspec.json.encode(message) + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            os._exit(STATUS_FAILED)

    def report(self, report: Report) -> None:
        """Sends a report."""
        self.send(Message(report=report))


def _failure(error: BaseException) -> WorkerFailure:
    if isinstance(error, HostFailedError):
        return WorkerFailure(str(error), is_input=True, is_missing=False)
    if isinstance(error, InputError | MissingError):
        return WorkerFailure(
            str(error), isinstance(error, InputError), isinstance(error, MissingError)
        )
    traceback.print_exception(error)
    return WorkerFailure(f"{type(error).__name__}: {error}", is_input=False, is_missing=False)


@contextlib.contextmanager
def _bound(session: Session, header: Header) -> Iterator[None]:
    """Bounds the time of every program on a host of the user's."""
    if not header.plugin:
        yield
        return
    with Watchdog(None, min(seconds_for(header), _LIMIT_S)) as bound:
        bound.rest()
        session.executor.bound = bound
        yield


def work(config: WorkerConfig) -> NoReturn:
    """Runs the session that `config` describes; ends the process."""
    follow_parent()
    pipe = _Pipe()
    faulthandler.register(signal.SIGUSR1)
    sessions: list[Session] = []

    def leave(error: BaseException | None) -> NoReturn:
        if sessions:
            sessions[0].finish()
        if error is not None:
            pipe.send(Message(failure=_failure(error)))
        sys.stderr.flush()
        os._exit(0 if error is None else STATUS_FAILED)

    try:
        load_parts()
        store = Store(Path(config.workdir))
        target = find_target(config.target)
        if config.max_ops:
            target = msgspec.structs.replace(target, max_ops=config.max_ops)
        plan = Plan(
            target=target,
            header=config.header,
            faults=config.faults,
            seed=config.seed,
            execs=config.execs,
            seconds=config.seconds,
            is_shared=config.is_shared,
            index=config.index,
            jobs=config.jobs,
            bounds=config.bounds,
            until_finding=config.until_finding,
            began=config.began,
        )
        session = Session(plan, store, pipe.report)
        sessions.append(session)
        died_of = read_noted_input(input_path(store, config.index))
        _note_inputs(session, input_path(store, config.index))
        testbed = session.executor.testbed
        if may_end_process(testbed.host):
            guard_process(testbed)
        signal.signal(signal.SIGTERM, lambda *_: session.stop())
        with _bound(session, config.header):
            if config.death and died_of:
                session.file_death(died_of, config.death)
            session.recover()
            ENGINES[config.engine].run(session, leave)
    except BaseException as error:
        leave(error)
    leave(None)


if __name__ == "__main__":
    work(msgspec.json.decode(sys.argv[1].encode(), type=WorkerConfig))
