# SPDX-License-Identifier: GPL-2.0-or-later
"""Batches of programs as Dask tasks: what is sent, what comes back, and the process that runs one.

A task hands its batch to `python -m guestemu.campaign.cluster.child`: the Dask worker stays
responsive and outlives a crash of the CPU emulator. Each thread of the worker keeps its process,
warm, for the next task. Dask itself repeats the tasks of a lost worker.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import IO, Final, TypeAlias

import msgspec

from guestemu.campaign.cluster.wire import NodeIdentity
from guestemu.replay.suite import Result


class ReplayBatch(msgspec.Struct, frozen=True, tag="replay"):
    """Programs to be judged by their expectations: name and text of each file. `plugins` are the
    directories whose code they may name as hosts."""

    files: list[tuple[str, bytes]]
    plugins: list[str] = []


class RunBatch(msgspec.Struct, frozen=True, tag="run"):
    """Programs of one header, in text form, of which the names of failing checks are wanted."""

    programs: list[bytes]


Batch: TypeAlias = ReplayBatch | RunBatch


class Task(msgspec.Struct, frozen=True):
    """A batch under its number, from a submitter that is `sender`."""

    number: int
    batch: Batch
    sender: NodeIdentity


class JobAnswer(msgspec.Struct, frozen=True):
    """What became of batch `number`: one of `results` (replay) or of `checks` (run) for each
    program. `death`, if not empty, says how the process died; then there is neither.
    `is_input` and `is_missing` tell the kind of a `failure` that concerns all of the batch."""

    number: int
    results: list[Result] = []
    checks: list[list[str]] = []
    death: str = ""
    failure: str = ""
    is_input: bool = False
    is_missing: bool = False


encode: Final = msgspec.msgpack.Encoder().encode
decode_task: Final = msgspec.msgpack.Decoder(Task).decode
decode_answer: Final = msgspec.msgpack.Decoder(JobAnswer).decode

_LENGTH: Final = 8
"""Bytes of the length in front of a frame."""


class _Child:
    """One such process. It may have ended because nothing was to do: that is status 0."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "guestemu.campaign.cluster.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def ask(self, data: bytes) -> bytes | int:
        """The answer, or the exit status of a process that has ended."""
        try:
            write_frame(self._tasks, data)
            return read_frame(self._answers)
        except (EOFError, OSError):
            self._answers.close()
            with contextlib.suppress(OSError):
                self._tasks.close()
            return self._process.wait()


_warm: Final = threading.local()
"""The process of each thread of a Dask worker. Between two tasks there is no other place for it."""


def run_task(data: bytes) -> bytes:
    """Runs an encoded `Task` in the process of this thread; the encoded `JobAnswer`."""
    status = 0
    while status == 0:
        child: _Child | None = getattr(_warm, "child", None)
        if child is None:
            child = _warm.child = _Child()
        answer = child.ask(data)
        if isinstance(answer, bytes):
            return answer
        _warm.child = None
        status = answer
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return encode(JobAnswer(decode_task(data).number, death=how))


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Sends `data` through a pipe, its length in front. Raises OSError."""
    stream.write(len(data).to_bytes(_LENGTH, "little") + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes:
    """What `write_frame` sent. Raises EOFError where the other end is gone."""
    head = stream.read(_LENGTH)
    size = int.from_bytes(head, "little")
    data = stream.read(size) if len(head) == _LENGTH else b""
    if len(head) < _LENGTH or len(data) < size:
        raise EOFError
    return data
