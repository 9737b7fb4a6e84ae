# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells: what one kernel did in one experiment, measured by running it.

An experiment is a function of a booted guest. Its cell says in a word what was seen, and in a line
by what it was judged. Tables of kernels and experiments are made of cells, never written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import GuestemuError, InputError

ABSENT: Final = "absent"
"""The kernel does not have what the experiment is about."""
FAILED: Final = "failed"
"""The experiment could not be made; the detail says why."""

BEGIN: Final = "<!-- made by: {command} -->"
END: Final = "<!-- end of what was made -->"


class Cell(msgspec.Struct, frozen=True):
    """The outcome of experiment `row` on `kernel` (as `linux:NAME` takes it) of `version`."""

    kernel: str
    version: str
    row: str
    outcome: str
    detail: str


class Verdict(msgspec.Struct, frozen=True):
    """What an experiment says of one kernel."""

    outcome: str
    detail: str


def judge(experiment: Callable[[], Verdict]) -> Verdict:
    """Runs `experiment`. What a kernel lacks for it makes it absent: a symbol or a type that is not
    there. Any other refusal is a failed one."""
    try:
        return experiment()
    except InputError as error:
        text = str(error)
        is_absent = any(part in text for part in (": no symbol ", ": this kernel has no"))
        return Verdict(ABSENT if is_absent else FAILED, text.rpartition(": ")[2])
    except GuestemuError as error:
        return Verdict(FAILED, str(error))


def markdown(cells: Iterable[Cell], rows: Sequence[str], headings: Sequence[str] = ()) -> list[str]:
    """A table with a line for each kernel, in the order of `cells`, and a column for each of
    `rows` (shown as `headings`)."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        lines.setdefault((cell.kernel, cell.version), {})[cell.row] = cell.outcome
    head = ["kernel", "version", *(headings or rows)]
    table = [_line(head), _line(["---"] * len(head))]
    for (kernel, version), found in lines.items():
        table.append(_line([kernel, version, *(found.get(row, "") for row in rows)]))
    return table


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def update(path: Path, command: str, lines: Sequence[str]) -> None:
    """Puts `lines` into the Markdown file `path`, in place of what `command` put there before.

    Raises `InputError` where the file has no such place.
    """
    begin = BEGIN.format(command=command)
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    before, mark, rest = text.partition(begin + "\n")
    _old, end, after = rest.partition(END)
    if not mark or not end:
        raise InputError(f"{path}: has no place for this table; write {begin} and {END} there")
    path.write_text("\n".join([before + begin, *lines, end]) + after)
