# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying many programs, in this process or in several.

Programs with one header run in one testbed, which is reset between them: booting one takes ten
times as long as most programs. Workers are processes of their own: a program that kills the
emulator's library takes its worker with it. It is then run once more, alone; a second death is its
own failure and not its neighbours'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import GuestemuError, InputError
from guestemu.abi.files import read_regular
from guestemu.host.permission import Permissions
from guestemu.program.program import Header, Program
from guestemu.program.text import load_program, parse_bytes
from guestemu.replay.expectations import Mismatch, judge
from guestemu.replay.lockstep.check import judged_testbed
from guestemu.replay.pool import run_batches
from guestemu.replay.record import record
from guestemu.report.trace.run import (
    LIMIT_LINUX_S,
    LIMIT_S,
    Run,
    check_program,
    run_in,
    run_program,
)
from guestemu.runner.testbed import HOST_FAILED, TIME_UP, Testbed, with_plugin

_NOTHING: Final = Permissions()
_SPOILS: Final = frozenset({HOST_FAILED, TIME_UP})
"""Violations after which guest and host are in no defined state."""

_PATIENCE_S: Final = 150.0
"""Wall-clock seconds after which a worker that answers nothing is ended, where a program may take
`LIMIT_S` of CPU time: more than the watchdog in it waits."""

_SMALLEST_BATCH: Final = 8
_BATCHES_PER_JOB: Final = 6


class Result(msgspec.Struct, frozen=True):
    """One file replayed: the expectations that do not hold, or `bad`, what is wrong with the input
    itself, and how long it took in seconds. `is_new`: its expectations were written anew.
    `is_internal`: guestemu itself failed on it, which keeps the results of the others."""

    program: str
    mismatches: tuple[Mismatch, ...] = ()
    bad: str | None = None
    seconds: float = 0.0
    is_new: bool = False
    is_internal: bool = False

    @property
    def passed(self) -> bool:
        """The run is as expected."""
        return not self.mismatches and self.bad is None


class Bench:
    """The testbed of the last header asked for; one at a time. A program may take `seconds` of CPU
    time (None: the default)."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._header: Header | None = None
        self._testbed: Testbed | None = None

    def run(self, program: Program) -> Run:
        """Runs `program` in the testbed of its header. Raises what `run_program` raises; the
        testbed is then given up."""
        check_program(program)
        try:
            if self._testbed is None or program.header != self._header:
                self.close()
                self._testbed, self._header = judged_testbed(program.header), program.header
            run = run_in(self._testbed, program, self._seconds)
            if any(found.check in _SPOILS for found in run.outcome.violations):
                self.close()
            return run
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the testbed up."""
        if self._testbed is not None:
            testbed, self._testbed = self._testbed, None
            testbed.close()


def replay_file(
    path: Path,
    recording: bool = False,
    bench: Bench | None = None,
    permissions: Permissions = _NOTHING,
) -> Result:
    """Runs the program in `path` and judges it, or with `recording` writes its expectations.

    Bad input and an emulator that refuses are results, not exceptions. `bench` keeps the testbed
    for the next file. `permissions` say which hosts of the user's may run.
    """

    def run_it() -> tuple[tuple[Mismatch, ...], bool]:
        program = with_plugin(load_program(path), permissions, path)
        run = run_program(program) if bench is None else bench.run(program)
        return ((), record(path, run)) if recording else (judge(run), False)

    return _result(str(path), run_it)


def replay_bytes(
    name: str, data: bytes, bench: Bench, permissions: Permissions = _NOTHING
) -> Result:
    """`replay_file` for a program whose file `name` is elsewhere and has this content."""

    def run_it() -> tuple[tuple[Mismatch, ...], bool]:
        program = with_plugin(parse_bytes(data, name), permissions, Path(name))
        return judge(bench.run(program)), False

    return _result(name, run_it)


def _result(name: str, run_it: Callable[[], tuple[tuple[Mismatch, ...], bool]]) -> Result:
    """What `run_it` gives (mismatches, whether anything was recorded) or raises."""
    start = time.perf_counter()
    mismatches: tuple[Mismatch, ...] = ()
    bad: str | None = None
    is_new = is_internal = False
    try:
        mismatches, is_new = run_it()
    except InputError as error:
        text = str(error)
        bad = text if text.startswith(name) else f"{name}: {text}"
    except GuestemuError as error:
        mismatches = (Mismatch("the run ends", f"{type(error).__name__}: {error}"),)
    except (OSError, MemoryError):
        raise  # of this machine, not of the program
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        bad = f"{name}: internal error: {what}; please report it with what guestemu run says"
        is_internal = True
    return Result(name, mismatches, bad, time.perf_counter() - start, is_new, is_internal)


def replay_all(
    paths: Sequence[Path],
    jobs: int = 1,
    recording: bool = False,
    progress: Callable[[Result], None] | None = None,
    permissions: Permissions = _NOTHING,
    seconds: float | None = None,
) -> tuple[Result, ...]:
    """Replays every file with up to `jobs` processes; results in the order of `paths`.

    `progress` is called after each file; `permissions` are as in `replay_file`, `seconds` as in
    `run_in`.
    """

    def note(result: Result) -> Result:
        if progress is not None:
            progress(result)
        return result

    parts = batches(paths, jobs)
    done: dict[Path, Result] = {}
    is_alone = jobs <= 1 or len(paths) <= 1
    if is_alone and not permissions.directories:  # code of the user's may end its process
        for batch in parts:
            for path, result in _replay(batch, recording, permissions, seconds):
                done[path] = note(result)
        return tuple(done[path] for path in paths)
    work = partial(_results, recording=recording, permissions=permissions, seconds=seconds)
    patience = _PATIENCE_S if seconds is None else _PATIENCE_S * max(seconds, LIMIT_S) / LIMIT_S
    if any(b"guest linux:" in _header_lines(path) for path in paths):
        patience *= LIMIT_LINUX_S / LIMIT_S

    def run(parts: Sequence[Sequence[Path]], jobs: int) -> Iterator[tuple[Path, Result]]:
        return run_batches(work, parts, jobs, stuck, patience)

    done = {path: note(result) for path, result in run(parts, max(jobs, 1))}
    for path in paths:
        if path not in done:
            done[path] = note(dict(run([[path]], 1)).get(path) or died(path))
    return tuple(done[path] for path in paths)


def _header_lines(path: Path) -> bytes:
    """The lines of a file before its ops, without comments: alike in programs of one testbed."""
    try:
        head = read_regular(path).partition(b"\n---")[0]
    except OSError:
        return b""
    return b"\n".join(line for line in head.splitlines() if not line.startswith(b"#"))


def batches(paths: Sequence[Path], jobs: int) -> list[list[Path]]:
    """The paths by header, in batches small enough for `jobs` workers to share them."""
    groups: dict[bytes, list[Path]] = {}
    for path in paths:
        groups.setdefault(_header_lines(path), []).append(path)
    size = max(_SMALLEST_BATCH, -(-len(paths) // (_BATCHES_PER_JOB * jobs)))
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


def _replay(
    batch: Sequence[Path], recording: bool, permissions: Permissions, seconds: float | None
) -> Iterator[tuple[Path, Result]]:
    bench = Bench(seconds)
    try:
        for path in batch:
            yield path, replay_file(path, recording, bench, permissions)
    finally:
        bench.close()


def _results(
    batch: Sequence[Path], recording: bool, permissions: Permissions, seconds: float | None
) -> Iterator[Result]:
    for _, result in _replay(batch, recording, permissions, seconds):
        yield result


def stuck(path: Path) -> Result:
    """The result of a program whose host could not be interrupted."""
    text = "its time was up, and its host did not stop when it was interrupted"
    return Result(str(path), (Mismatch("the run ends", text),))


def died(path: Path) -> Result:
    """The result of a program that took its process with it."""
    return Result(str(path), (Mismatch("the run ends", "the process that ran it died"),))
