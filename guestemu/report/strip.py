# SPDX-License-Identifier: GPL-2.0-or-later
"""The strip: what guest and host say about each frame of a range, one row per kind of record.

Rows are in the order in which a conversion goes: asked for, page tables, page state (RMP, SEPT),
told to the host, the host's record, sent how, readable afterwards. Columns are frames; frames that
agree in every row and lie side by side are folded where the range is long. Frames on which two
records disagree are marked, and a sentence says how.

One struct, three forms: JSON (the struct itself), text for a terminal of 80 columns (`strip_lines`)
and SVG (`strip_svg`).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT

PRIVATE: Final = "private"
SHARED: Final = "shared"
PENDING: Final = "pending"
FOREIGN: Final = "foreign"
UNMAPPED: Final = "unmapped"
NOTHING: Final = ""
YES: Final = "yes"
NO: Final = "no"
REFUSED: Final = " refused"
"""Behind PRIVATE or SHARED: the host answered an error."""

_TEXT_WIDTH: Final = 56
_NAME_WIDTH: Final = 20
_FOLDED: Final = 5
"""Longer runs of equal frames are drawn as the first, a gap and the last."""

_UNICODE: Final = {
    PRIVATE: "■",
    SHARED: "□",
    PENDING: "◧",
    FOREIGN: "?",
    UNMAPPED: "–",
    NOTHING: "·",
    YES: "✓",
    NO: "✗",
    PRIVATE + REFUSED: "■×",
    SHARED + REFUSED: "□×",
}
_ASCII: Final = {
    PRIVATE: "P",
    SHARED: "S",
    PENDING: "p",
    FOREIGN: "?",
    UNMAPPED: "-",
    NOTHING: ".",
    YES: "y",
    NO: "N",
    PRIVATE + REFUSED: "P!",
    SHARED + REFUSED: "S!",
}
_STYLES: Final = {PRIVATE: "blue", SHARED: "yellow", PENDING: "yellow", NO: "red", YES: "green"}
_LEGEND: Final = {
    PRIVATE: "private",
    SHARED: "shared",
    PENDING: "private, not accepted yet",
    FOREIGN: "another owner's",
    UNMAPPED: "not mapped",
    PRIVATE + REFUSED: "the host refused",
    SHARED + REFUSED: "the host refused",
    NOTHING: "nothing",
    YES: "readable",
    NO: "not readable",
}


class Column(msgspec.Struct, frozen=True):
    """`pages` frames from `gfn` on, whose cells are equal in every row; `name` is the first one's,
    as programs call it."""

    gfn: int
    pages: int
    name: str


class StripRow(msgspec.Struct, frozen=True):
    """One kind of record: a word of this module for each column."""

    name: str
    cells: tuple[str, ...]


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """The records after operation `op` (its text is `after`). `disagree` has one truth value per
    column; `sentences` say what disagrees, or that nothing does."""

    op: int
    after: str
    columns: tuple[Column, ...]
    rows: tuple[StripRow, ...]
    disagree: tuple[bool, ...]
    sentences: tuple[str, ...]


class StripLine(msgspec.Struct, frozen=True):
    """A line of text in parts, each with its style ("" for none)."""

    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """Without styles."""
        return "".join(text for text, _ in self.parts).rstrip()


def strip_lines(strip: Strip, is_ascii: bool = False, said: str = "") -> tuple[StripLine, ...]:
    """`strip` for a terminal of 80 columns, with no character outside ASCII if `is_ascii`, and
    without the sentence that was `said` already."""
    glyphs = _ASCII if is_ascii else _UNICODE
    gap, mark = ("..", "^") if is_ascii else ("⋯", "▲")
    columns, frames = drawn_columns(strip, _TEXT_WIDTH // 2)
    width = _width(frames)
    line = ""
    for place, name in sorted(ruler(strip, columns, frames, width).items()):
        line = f"{line:<{place * width}}{name}"
    lines = [StripLine((("", ""), (f"{'':{_NAME_WIDTH}}{line}", "dim")))]
    for row in strip.rows:
        parts = [(f"{row.name:<{_NAME_WIDTH}}", "")]
        for column in columns:
            cell = NOTHING if column is None else row.cells[column]
            glyph = gap if column is None else glyphs[cell]
            style = "dim" if column is None else _STYLES.get(cell.removesuffix(REFUSED), "dim")
            parts.append((f"{glyph:<{width}}", style))
        lines.append(StripLine(tuple(parts)))
    if any(strip.disagree):
        marks = "".join(
            f"{mark if column is not None and strip.disagree[column] else '':<{width}}"
            for column in columns
        )
        lines.append(StripLine(((f"{'disagree':<{_NAME_WIDTH}}{marks}", "red"),)))
    used = {cell for row in strip.rows for cell in row.cells}
    legend = "  ".join(
        f"{glyphs[word]}\u00a0{text.replace(' ', chr(0xA0))}"
        for word, text in _LEGEND.items()
        if word in used
    )
    style = "red" if any(strip.disagree) else ""
    for text, look in ((legend, "dim"), *((sentence, style) for sentence in unsaid(strip, said))):
        wrapped = textwrap.wrap(text, _NAME_WIDTH + _TEXT_WIDTH)
        lines += (StripLine(((line.replace("\u00a0", " "), look),)) for line in wrapped)
    return tuple(lines)


def drawn_columns(strip: Strip, most: int) -> tuple[list[int | None], list[str]]:
    """The frames to draw, `most` at most: each one's column by index, and its name; None for
    frames left out. Those in the middle of a long column are left out; where there are still more
    than `most`, those that are not beside a frame on which the records disagree."""
    columns: list[int | None] = []
    names: list[str] = []
    for index, column in enumerate(strip.columns):
        shown: Iterable[int | None] = range(column.pages)
        if column.pages > _FOLDED:
            shown = (0, None, column.pages - 1)
        for offset in shown:
            columns.append(None if offset is None else index)
            names.append("" if offset is None else _name_in(column, offset))
    if len(columns) > most and any(strip.disagree):
        wrong = {n for n, one in enumerate(columns) if one is not None and strip.disagree[one]}
        near = {n + step for n in wrong for step in (-1, 0, 1)}
        columns = [one if n in near else None for n, one in enumerate(columns)]
        kept = [n for n, one in enumerate(columns) if one is not None or n == 0 or n - 1 in near]
        columns, names = [columns[n] for n in kept], [names[n] for n in kept]
        names = ["" if one is None else name for one, name in zip(columns, names, strict=True)]
    return columns[:most], names[:most]


def _name_in(column: Column, offset: int) -> str:
    """The name of a column's frame: D[4] follows D[3], 0x10000 follows "GPA 0xf000"."""
    region = re.fullmatch(r"(\w+)\[(\d+)\]", column.name)
    return (
        f"{region[1]}[{int(region[2]) + offset}]"
        if region
        else f"{column.gfn + offset << PAGE_SHIFT:#x}"
    )


def _width(names: Sequence[str]) -> int:
    """Characters of a cell: as wide as the names allow, at least 2."""
    name = max(map(len, names), default=1) + 1
    return max(2, min(name, _TEXT_WIDTH // max(1, len(names)), 10))


def ruler(
    strip: Strip, columns: Sequence[int | None], names: Sequence[str], room: float
) -> dict[int, str]:
    """The names to write above the frames drawn, by place, where each has `room` characters: those
    on which records disagree first, then the first of each column, then others as they fit."""

    def rank(place: int) -> int:
        column = columns[place]
        if column is not None and strip.disagree[column]:
            return 0
        return 1 if column not in columns[:place] else 2

    found: dict[int, str] = {}
    for place in sorted(range(len(columns)), key=rank):
        end = place * room + len(names[place]) + 1
        if names[place] and not any(
            place * room < other * room + len(name) + 1 and other * room < end
            for other, name in found.items()
        ):
            found[place] = names[place]
    return found


# SVG ------------------------------------------------------------------------------------------

STRIP_STYLE: Final = (
    ".strip text{font-size:12px;fill:var(--ink)}.strip .dim{fill:var(--dim)}"
    ".strip .private{fill:var(--private)}"
    ".strip .shared{fill:var(--shared);stroke:var(--sharedline)}"
    ".strip .pending{fill:var(--shared);stroke:var(--private);stroke-dasharray:3 2}"
    ".strip .foreign{fill:none;stroke:var(--bad);stroke-width:2}"
    ".strip .nothing{fill:none;stroke:var(--grid)}"
    ".strip .yes{fill:var(--yes)}.strip .no{fill:var(--no)}"
    ".strip .wrong{fill:none;stroke:var(--bad);stroke-width:2.5}"
    ".strip .cross{stroke:var(--bad);stroke-width:2}"
    ".strip text.oncell{fill:#fff;font-weight:600}.strip text.onlight{fill:#14181f}"
)
_LETTERS: Final = {
    PRIVATE: "P",
    SHARED: "S",
    PENDING: "p",
    FOREIGN: "?",
    YES: "✓",
    NO: "✗",
    UNMAPPED: "–",
}
_CELL: Final = 46
_WIDEST: Final = 62
_HEIGHT: Final = 24
_LABEL: Final = 118
_MAX_DRAWN: Final = 24
_CHARACTER: Final = 7


def strip_svg(strip: Strip, identity: str) -> str:
    """`strip` as inline SVG; colours are the page's variables. It has a title and a description for
    screen readers."""
    columns, frames = drawn_columns(strip, _MAX_DRAWN)
    cell = min(max(_CELL, _CHARACTER * max(map(len, frames), default=0) + 8), _WIDEST)
    names = ruler(strip, columns, frames, cell / _CHARACTER)
    end = max((place * cell + _CHARACTER * len(name) for place, name in names.items()), default=0)
    width = _LABEL + max(4 * cell, len(columns) * cell, end) + 8
    height = 26 + len(strip.rows) * _HEIGHT + 8
    title = f"Strip after operation {strip.op}: {strip.after}"
    parts = [
        f'<svg id="{escape(identity)}" class="strip" role="img" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px;min-width:{width * 4 // 5}px" '
        f'aria-labelledby="{escape(identity)}-t {escape(identity)}-d">'
        f'<title id="{escape(identity)}-t">{escape(title)}</title>'
        f'<desc id="{escape(identity)}-d">{escape(describe_strip(strip))}</desc>'
    ]
    parts.append('<text class="dim" x="0" y="16">page</text>')
    for place, name in names.items():
        x = _LABEL + place * cell + 2
        parts.append(f'<text class="dim" x="{x}" y="16">{escape(name)}</text>')
    for line, row in enumerate(strip.rows):
        y = 24 + line * _HEIGHT
        parts.append(f'<text x="0" y="{y + 16}">{escape(row.name)}</text>')
        for place, column in enumerate(columns):
            x = _LABEL + place * cell
            if column is None:
                parts.append(f'<text class="dim" x="{x + 16}" y="{y + 16}">⋯</text>')
            else:
                parts.append(_svg_cell(row.cells[column], x, y, cell))
    for place, column in enumerate(columns):
        if column is not None and strip.disagree[column]:
            x = _LABEL + place * cell - 1
            parts.append(
                f'<rect class="wrong" x="{x}" y="22" width="{cell - 2}" '
                f'height="{len(strip.rows) * _HEIGHT + 2}" rx="4"/>'
            )
    return "".join(parts) + "</svg>"


def _svg_cell(said: str, x: int, y: int, width: int) -> str:
    word = said.removesuffix(REFUSED)
    name = "nothing" if word in (NOTHING, UNMAPPED) else word
    box = (
        f'<rect class="{name}" x="{x + 2}" y="{y + 3}" width="{width - 8}" '
        f'height="{_HEIGHT - 6}" rx="3"/>'
    )
    letter = _LETTERS.get(word)
    if letter is not None:
        kind = "onlight" if word in (SHARED, PENDING) else "oncell"
        kind = "" if word in (FOREIGN, UNMAPPED) else kind
        middle = x + 2 + (width - 8) // 2
        box += (
            f'<text class="{kind}" x="{middle}" y="{y + 16}" text-anchor="middle">{letter}</text>'
        )
    if said.endswith(REFUSED):
        box += (
            f'<path class="cross" d="M{x + 4} {y + _HEIGHT - 5}L{x + width - 8} {y + 5}"/>'
            f'<text class="onlight" x="{x + width - 14}" y="{y + 15}">×</text>'
        )
    return box


def strip_legend(strip: Strip) -> str:
    """When it is, and what its letters and colours mean, as far as it has them; HTML."""
    used = {cell for row in strip.rows for cell in row.cells}
    words = [f"{_LETTERS[word]} {_LEGEND[word]}" for word in _LETTERS if word in used]
    if any(cell.endswith(REFUSED) for cell in used):
        words.append("a crossed box: the host refused")
    if any(strip.disagree):
        words.append("red frame: the rows disagree")
    return (
        f'<p class="legend">After operation {strip.op}, <code>{escape(strip.after)}</code>. '
        f"{escape(', '.join(words))}.</p>"
    )


def unsaid(strip: Strip, said: str) -> tuple[str, ...]:
    """The strip's sentences without the one that was `said` already."""
    return tuple(one for one in strip.sentences if one.casefold() != said.casefold())


def strip_words(strip: Strip, said: str = "") -> str:
    """What disagrees, or that nothing does; HTML. Without the sentence that was `said` already."""
    kind = "bad" if any(strip.disagree) else "dim"
    return "".join(
        f'<p class="{kind}">{escape(one[:1].upper() + one[1:])}</p>' for one in unsaid(strip, said)
    )


def describe_strip(strip: Strip) -> str:
    """The strip read out: a sentence for each column, then what disagrees."""
    parts = []
    for index, column in enumerate(strip.columns):
        count = f" and {column.pages - 1} more like it" if column.pages > 1 else ""
        cells = ", ".join(f"{row.name} {row.cells[index] or 'nothing'}" for row in strip.rows)
        parts.append(f"{column.name}{count}: {cells}.")
    return " ".join((*parts, *strip.sentences))
