# SPDX-License-Identifier: GPL-2.0-or-later
"""A matrix of experiments: rows times columns, each cell an outcome in a word and a colour that
leads to what was seen and to the command that runs it again. A page, and a table for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import msgspec

from guestemu.report.page import TableCell, command_line, html_page, section, table


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment: its place, its outcome in a word, what was seen, the command that repeats
    it. `kind` is what the legend says of the outcome, where the word differs from cell to cell."""

    row: str
    column: str
    word: str
    detail: str
    command: str
    kind: str = ""


def matrix_page(
    title: str, words: str, tried: Sequence[Tried], values: Mapping[str, str], corner: str = "row"
) -> str:
    """The page. `words` says what was done; `values` takes an outcome's kind (its word, if it
    has none) to "good", "bad", "warn" or ""; `corner` says what rows are."""
    columns = list(dict.fromkeys(one.column for one in tried))
    numbers = {(one.row, one.column): number for number, one in enumerate(tried)}
    shown = [
        (
            row,
            *(
                _cell(tried[numbers[row, column]], numbers[row, column], values)
                if (row, column) in numbers
                else TableCell("")
                for column in columns
            ),
        )
        for row in dict.fromkeys(one.row for one in tried)
    ]
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(words)}</p>",
        _legend(tried, values),
        table((corner, *columns), shown, title, is_sortable=True),
        section("Every cell", "".join(_entry(one, number) for number, one in enumerate(tried))),
    ]
    return html_page(title, parts)


def _cell(one: Tried, number: int, values: Mapping[str, str]) -> TableCell:
    value = values.get(one.kind or one.word, "")
    return TableCell(one.word, value, f"cell-{number}", one.detail)


def _legend(tried: Iterable[Tried], values: Mapping[str, str]) -> str:
    words = dict.fromkeys(one.kind or one.word for one in tried)
    cells = "".join(
        f'<td class="v-{escape(values[word])}">{escape(word)}</td>'
        for word in words
        if values.get(word)
    )
    return f'<table class="legend" aria-label="Legend"><tbody><tr>{cells}</tr></tbody></table>'


def _entry(one: Tried, number: int) -> str:
    return (
        f'<h3 id="cell-{number}">{escape(one.row)}, {escape(one.column)}: {escape(one.word)}</h3>'
        f"<p>{escape(one.detail)}</p>{command_line(one.command)}"
    )


def matrix_rows(tried: Sequence[Tried]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the compact table for a terminal."""
    columns = tuple(dict.fromkeys(one.column for one in tried))
    words = {(one.row, one.column): one.word for one in tried}
    rows = dict.fromkeys(one.row for one in tried)
    return columns, [(row, *(words.get((row, column), "") for column in columns)) for row in rows]
