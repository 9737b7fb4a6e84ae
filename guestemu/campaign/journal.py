# SPDX-License-Identifier: GPL-2.0-or-later
"""The write-ahead record of a campaign: what a worker has seen, before anything is made of it.

    journal/worker-N.jsonl   one JSON object a line, appended with one write() each

A worker notes an input that brought coverage before the engine keeps it, and a violation before it
is minimised, which takes up to seconds. The kernel has the line once write() returned, so SIGKILL
of the worker loses nothing of it; a power cut may. What starts next (the worker's successor, or
`--resume`) puts missing inputs back and files violations that were met and not settled. A line that
was cut off, or is damaged, is skipped.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from guestemu.abi.files import read_regular

_SUFFIX: Final = ".jsonl"
_LARGEST: Final = 1 << 30


class InputNoted(msgspec.Struct, frozen=True, tag="input"):
    """An input that covered something new to its worker."""

    data: bytes


class ViolationMet(msgspec.Struct, frozen=True, tag="met"):
    """A program (`data`: its binary form) with a violation of this signature; seconds since the
    worker's start."""

    sign: str
    data: bytes
    seconds: float


class ViolationSettled(msgspec.Struct, frozen=True, tag="settled"):
    """One met violation of this signature is done with: filed, not shown again, or its program
    kills the process."""

    sign: str


class FindingFiled(msgspec.Struct, frozen=True, tag="filed"):
    """A finding whose program is saved; seconds since the worker's start."""

    key: str
    check: str
    seconds: float


class PositionNoted(msgspec.Struct, frozen=True, tag="position"):
    """How far the exhaustive engine is: the next program of the space that `space` names."""

    space: str
    position: int


Entry: TypeAlias = InputNoted | ViolationMet | ViolationSettled | FindingFiled | PositionNoted


def input_name(data: bytes) -> str:
    """The file name of an input in a corpus (libFuzzer's)."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class Journal:
    """Appends to one worker's file. Raises OSError."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._encode = msgspec.json.Encoder().encode

    def add(self, entry: Entry) -> None:
        """Appends `entry`, on a line of its own even behind a line that was cut off."""
        data = b"\n" + self._encode(entry) + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """No more entries."""
        os.close(self._fd)


def journal_path(directory: Path, index: int) -> Path:
    """The file of worker `index`."""
    return directory / f"worker-{index}{_SUFFIX}"


def journal_files(directory: Path, index: int = 0, jobs: int = 1) -> list[Path]:
    """The files that worker `index` of `jobs` looks after: its own and those of workers that this
    run of the campaign does not have."""
    found: list[tuple[int, Path]] = []
    for path in directory.glob(f"worker-*{_SUFFIX}"):
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and int(number) % jobs == index:
            found.append((int(number), path))
    return [path for _, path in sorted(found)]


def read_journals(paths: Iterable[Path]) -> list[Entry]:
    """Every whole entry of the files, in order. A file that cannot be read counts as empty."""
    decoder = msgspec.json.Decoder(Entry)
    entries: list[Entry] = []
    for path in paths:
        if not path.is_file():
            continue
        try:
            lines = read_regular(path, _LARGEST).split(b"\n")
        except OSError:
            continue
        for line in lines:
            if not line:
                continue
            try:
                entries.append(decoder.decode(line))
            except (msgspec.DecodeError, ValueError, RecursionError):
                continue
    return entries


def unsettled(entries: Iterable[Entry]) -> list[ViolationMet]:
    """Violations that were met and not settled: of each signature the last ones, as many as were
    met more often than settled (files are not in order of time among each other)."""
    met: dict[str, list[ViolationMet]] = {}
    settled: Counter[str] = Counter()
    for entry in entries:
        if isinstance(entry, ViolationMet):
            met.setdefault(entry.sign, []).append(entry)
        elif isinstance(entry, ViolationSettled):
            settled[entry.sign] += 1
    return [entry for sign, all_met in met.items() for entry in all_met[settled[sign] :]]
