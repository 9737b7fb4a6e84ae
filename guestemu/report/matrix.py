# SPDX-License-Identifier: GPL-2.0-or-later
"""A matrix of experiments: rows times columns, each cell an outcome in a word and a colour that
leads to what was seen and to the command that runs it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from guestemu.report.document import (
    Chapter,
    Code,
    Content,
    Document,
    Grid,
    Heading,
    Legend,
    Paragraph,
)
from guestemu.report.page import TableCell


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment: its place, its outcome in a word, what was seen, the command that repeats
    it. `kind` is what the legend says of the outcome, where the word differs from cell to cell.
    `more` leads to another place of the page."""

    row: str
    column: str
    word: str
    detail: str
    command: str
    kind: str = ""
    more: Paragraph | None = None


def matrix_document(
    title: str, words: str, tried: Sequence[Tried], values: Mapping[str, str], corner: str = "row"
) -> Document:
    """The matrix; a page also has every cell below it. `words` says what was done; `values` takes
    an outcome's kind (its word, if it has none) to "good", "bad", "warn" or ""; `corner` says what
    rows are."""
    matrix, cells = matrix_contents(title, tried, values, corner)
    return Document(
        title,
        (
            Chapter("", (Paragraph(words),), is_page_only=True),
            Chapter("", matrix),
            Chapter("Every cell", cells, is_page_only=True),
        ),
    )


def matrix_contents(
    title: str,
    tried: Sequence[Tried],
    values: Mapping[str, str],
    corner: str,
    place: str = "cell",
) -> tuple[tuple[Content, ...], tuple[Content, ...]]:
    """The matrix with its legend, and every cell. Cells lead to "`place`-N". The rest is as for
    `matrix_document`."""
    columns = tuple(dict.fromkeys(one.column for one in tried))
    numbers = {(one.row, one.column): number for number, one in enumerate(tried)}
    rows = tuple(
        (
            row,
            *(
                _cell(tried[numbers[row, column]], f"{place}-{numbers[row, column]}", values)
                if (row, column) in numbers
                else TableCell("")
                for column in columns
            ),
        )
        for row in dict.fromkeys(one.row for one in tried)
    )
    kinds = dict.fromkeys(one.kind or one.word for one in tried)
    legend = Legend(tuple((kind, values[kind]) for kind in kinds if values.get(kind)))
    cells = [
        content for number, one in enumerate(tried) for content in _entry(one, f"{place}-{number}")
    ]
    return (legend, Grid((corner, *columns), rows, title)), tuple(cells)


def _cell(one: Tried, to: str, values: Mapping[str, str]) -> TableCell:
    return TableCell(one.word, values.get(one.kind or one.word, ""), to, one.detail)


def _entry(one: Tried, identity: str) -> tuple[Content, ...]:
    heading = Heading(f"{one.row}, {one.column}: {one.word}", identity)
    more = () if one.more is None else (one.more,)
    return heading, Paragraph(one.detail), *more, Code(one.command, True)
