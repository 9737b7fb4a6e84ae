# SPDX-License-Identifier: GPL-2.0-or-later
"""Where verbs write: results to stdout, everything else to stderr.

With `--json` a verb calls `emit_json` once and `emit` never. Progress and notes go to stderr
through `notes()`; live displays only when `is_live()`. Colour needs a terminal and no NO_COLOR.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_COLUMN_GAP: Final = 2


def prepare_streams() -> None:
    """Makes stdout and stderr write escapes for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def emit(text: str = "") -> None:
    """One line of result on stdout."""
    print(text)


def emit_json(value: object) -> None:
    """`value` (records, mappings, numbers …) as one JSON object on one line of stdout."""
    print(msgspec.json.encode(value).decode())


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under headings, in columns as wide as their widest cell, on stdout."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for index, row in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = (" " * _COLUMN_GAP).join(padded).rstrip()
        emit(paint(line, "bold") if index == 0 else line)


def paint(text: str, style: str) -> str:
    """`text` for stdout in `style` (red, green, yellow, bold, dim) if stdout shows colour."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or _is_dumb():
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def note(text: str) -> None:
    """One line for the user on stderr that is no result."""
    print(text, file=sys.stderr)


def notes() -> Console:
    """A rich console on stderr for progress and live displays (rich respects NO_COLOR)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def is_live() -> bool:
    """Whether a display on stderr may redraw itself: a terminal that is not dumb."""
    return sys.stderr.isatty() and not _is_dumb()


def _is_dumb() -> bool:
    return os.environ.get("TERM", "") == "dumb"
