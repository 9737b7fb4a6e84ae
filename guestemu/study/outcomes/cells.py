# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells: what one kernel did in one experiment, measured by running it.

An experiment is a function of a booted guest. Its cell says in a word what was seen, and in a line
by what it was judged. Tables of kernels and experiments are made of cells, never written by hand:
`kernel test` shows all cells of a kernel, `kernel defects` those of the known defects, `kernel
matrix` those of the verbs, `outcomes matrix|snp|table|findings` those of one answer in each guest
kind, and docs/findings.md says in sentences what the table of defects has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from guestemu.abi.errors import GuestemuError, InputError
from guestemu.guest.linux.images import version_key

ABSENT: Final = "absent"
"""The kernel does not have what the experiment is about."""
FAILED: Final = "failed"
"""The experiment could not be made; the detail says why."""

OPTION_OF: Final = {
    "efi": "CONFIG_EFI=y",
    "kvm_cpu_down_prepare": "CONFIG_SMP=y",
    "kvm_guest_cpu_offline": "CONFIG_SMP=y",
    "setup_efi_kvm_sev_migration": "CONFIG_EFI=y",
}
"""What brings a function that an experiment calls."""

BEGIN: Final = "<!-- made by: {command} -->"
END: Final = "<!-- end of what was made -->"
SENTENCE: Final = "<!-- seen: {row} -->"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of experiment `row` under `answer` ("": what a host that agrees answers) on
    `kernel` (as `linux:NAME` takes it) of `version`, run as a guest of `kind` ("": of none).

    `defect` names the known defect that the outcome shows. `hypercalls` are the exits of the
    experiment, page-state changes and MapGPA among them, `instructions` what it executed; None
    where that was not counted.
    """

    kernel: str
    version: str
    row: str
    outcome: str
    detail: str
    kind: str = ""
    answer: str = ""
    defect: str = ""
    hypercalls: int | None = None
    instructions: int | None = None

    @property
    def key(self) -> Key:
        """What distinguishes it from the other cells of its kernel."""
        return Key(self.kind, self.row, self.answer)


class Key(NamedTuple):
    """One experiment: guest kind, row, answer of the host."""

    kind: str
    row: str
    answer: str = ""

    def __str__(self) -> str:
        return f"{self.row}/{self.answer}" if self.answer else self.row


class Verdict(msgspec.Struct, frozen=True):
    """What an experiment says of one kernel; the fields are those of `Cell`."""

    outcome: str
    detail: str
    defect: str = ""
    hypercalls: int | None = None
    instructions: int | None = None


def judge(experiment: Callable[[], Verdict]) -> Verdict:
    """Runs `experiment`. What a kernel lacks for it makes it absent: a symbol or a type that is not
    there. Any other refusal is a failed one."""
    try:
        return experiment()
    except InputError as error:
        text = str(error)
        if not any(part in text for part in (": no symbol ", ": this kernel has no")):
            return Verdict(FAILED, text)
        reason = text.partition("; ")[0].rpartition(": ")[2]
        option = OPTION_OF.get(reason.removeprefix("no symbol "))
        return Verdict(ABSENT, f"{reason} ({option} brings it)" if option else reason)
    except GuestemuError as error:
        return Verdict(FAILED, str(error))


def markdown(cells: Iterable[Cell], rows: Sequence[str], before: Sequence[str] = ()) -> list[str]:
    """A table with a line for each kernel, oldest first, and a column for each of `rows`. What the
    lines of `before`, such a table, say of other kernels and rows is kept."""
    lines = {line[0]: line for line in map(_parts, before[2:]) if line}
    head = _parts(before[0])[2:] if len(before) > 2 else []
    columns = [*rows, *(name for name in head if name not in rows)]
    table: dict[tuple[str, str], dict[str, str]] = {
        (kernel, version): dict(zip(head, outcomes, strict=False))
        for kernel, version, *outcomes in lines.values()
    }
    for cell in cells:
        for key in [key for key in table if key[0] == cell.kernel and key[1] != cell.version]:
            del table[key]
        table.setdefault((cell.kernel, cell.version), {})[cell.row] = cell.outcome
    made = [table_line(["kernel", "version", *columns]), table_line(["---"] * (len(columns) + 2))]
    for key in sorted(table, key=lambda key: version_key(key[0])):
        found = table[key]
        made.append(table_line([*key, *(found.get(row, "") for row in columns)]))
    return made


def table_line(parts: Sequence[str]) -> str:
    """The line of a Markdown table with these cells."""
    return f"| {' | '.join(parts)} |"


def _parts(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split("|")]


def sentence(table: Sequence[str], row: str, outcomes: Sequence[str]) -> str:
    """On which kernels of `table` the row has which of `outcomes`: "seen on 6.1, 6.12; …"."""
    head = _parts(table[0]) if table else []
    if row not in head:
        return ""
    lines = [_parts(line) for line in table[2:]]
    column = head.index(row)
    parts = []
    for outcome in outcomes:
        kernels = [line[0] for line in lines if line[column] == outcome]
        if kernels:
            parts.append(f"{outcome} on {', '.join(kernels)}")
    return "; ".join(parts)


def update_sentences(
    path: Path, table: Sequence[str], rows: Sequence[str], outcomes: Sequence[str]
) -> None:
    """Writes the sentences of a table's rows into the lines of the Markdown file `path` that begin
    with SENTENCE. Raises `InputError` where the file cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    for index, line in enumerate(lines):
        for row in rows:
            mark = SENTENCE.format(row=row)
            if line.startswith(mark):
                lines[index] = f"{mark} `{row}`: {sentence(table, row, outcomes)}."
    path.write_text("\n".join(lines) + "\n")


def update(path: Path, command: str, cells: Sequence[Cell], rows: Sequence[str]) -> list[str]:
    """Puts the table of `cells` into the Markdown file `path`, where `command` put one before:
    cells that are not measured anew are kept. Returns the table's lines.

    Raises `InputError` where the file has no such place.
    """
    before, old, after = _around(path, command)
    lines = markdown(cells, rows, old)
    path.write_text("\n".join([before, *lines, after]))
    return lines


def replace_table(path: Path, command: str, lines: Sequence[str]) -> None:
    """Puts `lines` into the Markdown file `path` in place of the table that `command` put there.
    Raises `InputError` where the file has no such place."""
    before, _, after = _around(path, command)
    path.write_text("\n".join([before, *lines, after]))


def _around(path: Path, command: str) -> tuple[str, list[str], str]:
    """A page up to the line where the table of `command` begins, the table's lines, and the page
    from its end on."""
    begin = BEGIN.format(command=command)
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    before, mark, rest = text.partition(begin + "\n")
    old, end, after = rest.partition(END)
    if not mark or not end:
        raise InputError(f"{path}: has no place for this table; write {begin} and {END} there")
    return before + begin, old.splitlines(), end + after
