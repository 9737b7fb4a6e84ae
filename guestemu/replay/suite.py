# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying many programs, in this process or in several.

Workers are processes of their own: a program that kills the emulator's library takes one worker
with it. It is then run once more alone; a second death is its own failure and not its neighbours'.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import msgspec

from guestemu.abi.errors import GuestemuError, InputError
from guestemu.program.text import load_program
from guestemu.replay.expectations import Mismatch, judge
from guestemu.replay.record import record
from guestemu.trace.run import run_program


class Result(msgspec.Struct, frozen=True):
    """One file replayed: the expectations that do not hold, or `bad`, what is wrong with the input
    itself, and how long it took in seconds. `is_new`: its expectations were written anew."""

    program: str
    mismatches: tuple[Mismatch, ...] = ()
    bad: str | None = None
    seconds: float = 0.0
    is_new: bool = False

    @property
    def passed(self) -> bool:
        """The run is as expected."""
        return not self.mismatches and self.bad is None


def replay_file(path: Path, recording: bool = False) -> Result:
    """Runs the program in `path` and judges it, or with `recording` writes its expectations.

    Bad input and an emulator that refuses are results, not exceptions.
    """
    start = time.perf_counter()
    mismatches: tuple[Mismatch, ...] = ()
    bad: str | None = None
    is_new = False
    try:
        run = run_program(load_program(path))
        if recording:
            is_new = record(path, run)
        else:
            mismatches = judge(run)
    except InputError as error:
        text = str(error)
        bad = text if text.startswith(str(path)) else f"{path}: {text}"
    except GuestemuError as error:
        mismatches = (Mismatch("the run ends", f"{type(error).__name__}: {error}"),)
    return Result(str(path), mismatches, bad, time.perf_counter() - start, is_new)


def replay_all(
    paths: Sequence[Path],
    jobs: int = 1,
    recording: bool = False,
    progress: Callable[[Result], None] | None = None,
) -> tuple[Result, ...]:
    """Replays every file with up to `jobs` processes; results in the order of `paths`.

    `progress` is called after each file.
    """

    def note(result: Result) -> Result:
        if progress is not None:
            progress(result)
        return result

    if jobs <= 1 or len(paths) <= 1:
        return tuple(note(replay_file(path, recording)) for path in paths)
    done = {path: note(result) for path, result in _in_pool(paths, jobs, recording)}
    for path in paths:
        if path not in done:
            alone = dict(_in_pool((path,), 1, recording))
            done[path] = note(alone.get(path) or _died(path))
    return tuple(done[path] for path in paths)


def _died(path: Path) -> Result:
    return Result(str(path), (Mismatch("the run ends", "the process that ran it died"),))


def _in_pool(paths: Sequence[Path], jobs: int, recording: bool) -> Iterable[tuple[Path, Result]]:
    """Results as they come; the files that a dead worker took with it are left out."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(paths)), context, _ignore_interrupt)
    try:
        futures = {pool.submit(replay_file, path, recording): path for path in paths}
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            yield futures[future], result
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ctrl-C is for the parent, which then shuts the workers down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
