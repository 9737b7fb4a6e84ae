# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens a trace of any format that is known: recognised by its first line."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from guestemu.abi.errors import InputError
from guestemu.abi.files import FULL
from guestemu.dma.csv_trace import CsvReader, is_csv
from guestemu.dma.events import Event
from guestemu.dma.trace import TraceReader, TraceReport

STANDARD_INPUT: Final = "-"
_OF_OUTPUTS: Final = FULL | {errno.EPIPE}
"""What no read fails with: a file that is written meanwhile does."""
_PEEKED: Final = 4096
_BINARY: Final = {
    b"\x1f\x8b": "compressed by gzip; read it with `zcat FILE | guestemu dma -`",
    b"\xfd7zXZ": "compressed by xz; read it with `xzcat FILE | guestemu dma -`",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; read it with `zstdcat FILE | guestemu dma -`",
    b"BZh": "compressed by bzip2; read it with `bzcat FILE | guestemu dma -`",
    b"PERFILE2": "a binary perf file; convert it with `perf script -i FILE > FILE.txt`",
}
"""First bytes of files that are not text, and what to do with them."""


class EventReader(Protocol):
    """A reader of some format: iterate once over the events, then ask for the report."""

    bytes_read: int
    """How far the source has been read, in bytes."""

    def __iter__(self) -> Iterator[Event]:
        """The events in the order of the source."""

    def report(self) -> TraceReport:
        """What else was seen."""


def reader_of(source: io.BufferedReader, name: str) -> EventReader:
    """A reader of `source`, which must be at its start; `name` stands in messages.

    Raises `InputError` for a file that is compressed or binary.
    """
    start = source.peek(_PEEKED)
    for magic, remedy in _BINARY.items():
        if start.startswith(magic):
            raise InputError(f"{name}: {remedy}")
    first = start.split(b"\n", 1)[0]
    return CsvReader(source, name) if is_csv(first) else TraceReader(source, name)


@contextmanager
def open_trace(path: Path) -> Iterator[EventReader]:
    """A reader of the file `path` ("-": standard input), closed at the end of the `with` block.

    InputError when the file cannot be opened or read.
    """
    try:
        if str(path) == STANDARD_INPUT:
            yield reader_of(io.BufferedReader(io.FileIO(0, closefd=False)), "standard input")
            return
        with path.open("rb") as source:
            yield reader_of(source, str(path))
    except OSError as error:
        if error.filename not in (None, str(path)) or error.errno in _OF_OUTPUTS:
            raise
        reason = error.strerror or "cannot be read"
        raise InputError(f"{path}: {reason}; give the text of an ftrace buffer") from None
