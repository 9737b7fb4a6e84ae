# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel entries` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.cli import console
from guestemu.cli._kernel_cells import images_of

if TYPE_CHECKING:
    from guestemu.study.outcomes.entries import ConversionEntry

COMMAND: Final = "guestemu kernel entries"
_COLUMNS: Final = ("function", "kernels", "converts by", "rows")
_MAX_ROWS: Final = 4
_UNKNOWN: Final = "no row"


class KernelEntries(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one kernel."""

    kernel: str
    version: str
    entries: tuple[ConversionEntry, ...]


def find(names: Sequence[str], kinds: Sequence[str]) -> list[KernelEntries]:
    """The entries of every kernel (all fetched ones for no name). Raises `InputError`,
    `MissingError`."""
    from guestemu.study.outcomes.battery import KINDS
    from guestemu.study.outcomes.entries import measure_entries

    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--kind {kind}: {nearest(kind, KINDS)}")
    found = []
    for name, image in images_of(names):
        with console.busy(f"{name}: calls"):
            version, entries = measure_entries(image, kinds or KINDS, partial(_say, name))
        found.append(KernelEntries(kernel=name, version=version, entries=tuple(entries)))
    return found


def _say(name: str, kind: str) -> None:
    console.note(f"{name}, {kind}")


def table(found: Iterable[KernelEntries]) -> list[tuple[str, str, str, str]]:
    """A line for each function of all kernels together: where it is, what it calls, and which rows
    reach it as which guest kinds, or what it needs."""
    kernels: dict[str, list[str]] = {}
    calls: dict[str, dict[str, None]] = {}
    rows: dict[str, dict[str, dict[str, None]]] = {}
    needs: dict[str, str] = {}
    for one in found:
        for entry in one.entries:
            name = entry.function.partition(".")[0]
            there = kernels.setdefault(name, [])
            if one.kernel not in there:
                there.append(one.kernel)
            calls.setdefault(name, {}).update(dict.fromkeys(entry.calls))
            of_name = rows.setdefault(name, {})
            for reached in entry.reached:
                of_name.setdefault(reached.row, {})[reached.kind] = None
            needs[name] = entry.needs
    return [
        (
            name,
            ", ".join(kernels[name]),
            ", ".join(calls[name]),
            _rows(rows[name]) or (f"none: for {needs[name]}" if needs[name] else _UNKNOWN),
        )
        for name in sorted(kernels)
    ]


def _rows(rows: dict[str, dict[str, None]]) -> str:
    """Rows by the kinds that reach the function in them; of many the first."""
    by_kinds: dict[str, list[str]] = {}
    for row, kinds in rows.items():
        by_kinds.setdefault(" ".join(kinds), []).append(row)
    parts = []
    for together, names in by_kinds.items():
        more = f" and {len(names) - _MAX_ROWS} more" if len(names) > _MAX_ROWS else ""
        parts.append(f"{', '.join(names[:_MAX_ROWS])}{more} ({together})")
    return "; ".join(parts)


def tell(found: Sequence[KernelEntries]) -> None:
    """For people."""
    lines = table(found)
    console.emit_table(_COLUMNS, lines)
    reached = sum(not line[3].startswith((_UNKNOWN, "none: ")) for line in lines)
    console.emit()
    console.emit(f"{reached} of {len(lines)} functions are reached")


def write_table(path: Path, found: Sequence[KernelEntries]) -> None:
    """Puts the table into the page. Raises `InputError`."""
    from guestemu.study.outcomes.cells import replace_table, table_line

    lines = [table_line(_COLUMNS), table_line(["---"] * len(_COLUMNS))]
    lines += [table_line((f"`{line[0]}`", *line[1:])) for line in table(found)]
    replace_table(path, COMMAND, lines)
