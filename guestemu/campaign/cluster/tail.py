# SPDX-License-Identifier: GPL-2.0-or-later
"""Follows what a supervisor's workers write, and returns what is new since the last look."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from guestemu.campaign.journal import Entry


class JournalTail:
    """The whole lines that one journal gains, from its present end on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoder = msgspec.json.Decoder(Entry)
        self._place = path.stat().st_size if path.exists() else 0

    def read(self) -> Iterator[Entry]:
        """The entries since the last call; a line that is not whole yet comes with the next."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                data = file.read()
        except OSError:
            return
        end = data.rfind(b"\n") + 1
        self._place += end
        for line in data[:end].split(b"\n"):
            if line:
                with contextlib.suppress(msgspec.DecodeError, ValueError):
                    yield self._decoder.decode(line)


class DirectoryTail:
    """The files matching `patterns` that appear in a directory; such files are written whole."""

    def __init__(self, directory: Path, *patterns: str) -> None:
        self._directory = directory
        self._patterns = patterns
        self._known = {path.name for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(path for pattern in self._patterns for path in self._directory.glob(pattern))

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file since the last call."""
        for path in self._paths():
            if path.name not in self._known:
                with contextlib.suppress(OSError):
                    data = path.read_bytes()
                    self._known.add(path.name)
                    yield path.name, data
