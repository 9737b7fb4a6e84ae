# SPDX-License-Identifier: GPL-2.0-or-later
"""Where verbs write: results to stdout, everything else to stderr.

With `--json` a verb calls `emit_json` once and `emit` never; the object says in `schema` which verb
printed it and which shape it has (docs/json.md). Progress and notes go to stderr through `notes()`;
live displays only when `is_live()`. Colour needs a terminal and no NO_COLOR.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.text import visible
from guestemu.cli._busy import Busy

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from guestemu.report.card import Card
    from guestemu.report.document import (
        Bullets,
        Code,
        Content,
        Document,
        Heading,
        Item,
        Paragraph,
    )
    from guestemu.report.strip import StripLine

_PROGRAM: Final = "guestemu"
_SHAPES_VERSION: Final = 1
"""Of all JSON objects; rises when a key goes or changes its meaning."""

_STYLES: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2", "blue": "34"}
_PAINTED: Final = re.compile(rf"(\x1b\[(?:{'|'.join(_STYLES.values())}|0)m)")
_CONTROLS: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that JSON leaves as they are and terminals may obey."""

_COLUMN_GAP: Final = 2
_PICTURE_INDENT: Final = 2
_VALUES: Final = {"good": "green", "bad": "red", "warn": "yellow"}
"""Styles of what a table's cell is worth."""


class _Output(msgspec.Struct):
    """What the present command prints: its verb, and whether its object is out."""

    verb: str = ""
    has_object: bool = False
    busy: Busy | None = None


_output: ContextVar[_Output] = ContextVar("output")


def begin(verb: str) -> None:
    """A command begins; `verb` is "kernel.boot" for `guestemu kernel boot`."""
    _output.set(_Output(verb))


@contextmanager
def busy(text: str) -> Iterator[None]:
    """While entered, a terminal shows `text` and the seconds gone, from two seconds on and until
    the command prints something."""
    output = _output.get(_Output())
    if not is_live():
        yield
        return
    with Busy(text) as output.busy:
        yield


def _break_in() -> None:
    """The command prints something now."""
    output = _output.get(None)
    if output is not None and output.busy is not None:
        output.busy.stop()


def has_object() -> bool:
    """Whether the present command has printed its JSON object."""
    return _output.get(_Output()).has_object


def prepare_streams() -> None:
    """Makes stdout and stderr write escapes for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def emit(text: str = "") -> None:
    """One line of result on stdout. Whatever others put into `text`, a newline or an escape
    sequence is shown and not sent; only what `paint` adds is."""
    _break_in()
    print(_shown(text))


def emit_text(text: str) -> None:
    """Several lines of result on stdout."""
    for line in text.split("\n"):
        emit(line)


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    if not has_colour():
        return visible(text)
    return "".join(
        part if index % 2 else visible(part) for index, part in enumerate(_PAINTED.split(text))
    )


def emit_json(value: object, shape: str = "") -> None:
    """`value` (a record or a mapping) as one JSON object on one line of stdout.

    `shape` tells the shapes of one verb apart: "lockstep" gives the schema guestemu.run.lockstep/1.
    """
    _break_in()
    output = _output.get(_Output())
    name = ".".join(part for part in (_PROGRAM, output.verb, shape) if part)
    fields: dict[str, object] = msgspec.to_builtins(value, str_keys=True)
    whole = {"schema": f"{name}/{_SHAPES_VERSION}", **fields}
    try:
        text = msgspec.json.encode(whole).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        text = msgspec.json.encode(_without_surrogates(whole)).decode()
    print(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
    output.has_object = True


def _without_surrogates(value: object) -> object:
    """`value`, made of builtins, with the bytes of names that are not UTF-8 as \\udcXX."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(one) for one in value]
    return value


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under headings, in columns as wide as their widest cell, on stdout."""
    _emit_cells(columns, ([(visible(str(cell)), "") for cell in row] for row in rows))


def _emit_cells(
    columns: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]], indent: str = ""
) -> None:
    """Rows of texts with their styles, under headings if there are any."""
    head = [[(text, "bold") for text in columns]] if columns else []
    cells = [*head, *rows]
    widths = [max(len(text) for text, _ in column) for column in zip(*cells, strict=True)]
    gap = " " * _COLUMN_GAP
    for row in cells:
        used = max((place for place, (text, _) in enumerate(row, 1) if text.strip()), default=0)
        parts = []
        for place, ((text, style), width) in enumerate(zip(row, widths, strict=True), 1):
            shown = text.ljust(width) if place < used else text.rstrip()
            if place <= used:
                parts.append(paint(shown, style) if style else shown)
        emit(indent + gap.join(parts))


def paint(text: str, style: str) -> str:
    """`text` for stdout in `style` (red, green, yellow, blue, bold, dim) if stdout shows colour."""
    if not has_colour():
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def has_colour() -> bool:
    """Whether stdout shows colour."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not _is_dumb()


def has_unicode() -> bool:
    """Whether stdout's encoding has the signs of pictures."""
    try:
        "■□◧✓✗⋯▲".encode(sys.stdout.encoding or "utf-8")  # a stream of text has no encoding
    except (UnicodeEncodeError, LookupError):
        return False
    return not _is_dumb()


def emit_lines(lines: Iterable[StripLine], indent: str = "") -> None:
    """The lines of a picture on stdout, each behind `indent`."""
    for line in lines:
        emit(indent + "".join(paint(text, style) if style else text for text, style in line.parts))


def emit_document(document: Document) -> None:
    """A document on stdout: its title with what belongs to it, then the chapters that are not for
    pages only, a blank line before each."""
    if document.title:
        emit(document.title)
    for content in document.lead:
        _emit_content(content)
    for chapter in document.chapters:
        if chapter.is_page_only:
            continue
        emit()
        if chapter.title:
            emit(paint(chapter.title, "bold"))
        for content in chapter.contents:
            _emit_content(content)


def _emit_content(content: Content, indent: str = "") -> None:
    """A picture of a page alone (`Svg`) prints nothing; the others are nearly as wide as a
    terminal, and indented a little at most."""
    from guestemu.report.document import Grid, Item, Legend, Picture, Svg, picture_lines

    match content:
        case Item():
            _emit_item(content, indent)
        case Grid(headings, rows):
            _emit_cells(headings, ([_worded(cell) for cell in row] for row in rows), indent)
        case Picture(_, drawn, said):
            emit_lines(picture_lines(drawn, not has_unicode(), said), indent[:_PICTURE_INDENT])
        case Legend(entries):
            emit(indent + "  ".join(paint(word, _VALUES[value]) for word, value in entries))
        case Svg():
            pass
        case _:
            for text, style in _text_lines(content):
                _emit_styled(text, style, indent)


def _text_lines(
    content: Paragraph | Bullets | Heading | Code | Card,
) -> Iterator[tuple[str, str]]:
    """Lines with their styles."""
    from guestemu.report.document import Bullets, Code, Heading, Paragraph

    match content:
        case Paragraph(text, style):
            yield text, style
        case Bullets(lines, style):
            yield from ((f"  {line}" if line else "", style) for line in lines)
        case Heading(text):
            yield text, "bold"
        case Code(text, is_command):
            yield from ((line, "") for line in (f"$ {text}" if is_command else text).split("\n"))
        case _:
            yield f"{content.key}: {content.headline}", ""


def _emit_item(item: Item, indent: str) -> None:
    if item.label:
        label = paint(item.label, item.style) if item.style else item.label
        emit(f"{indent}{label}{item.text}")
    else:
        _emit_styled(item.text, item.style, indent)
    for content in item.contents:
        _emit_content(content, indent + " " * item.indent)


def _emit_styled(text: str, style: str, indent: str) -> None:
    """One line; of an empty one not even the indentation."""
    line = f"{indent}{text}" if text else ""
    emit(paint(line, style) if style and line else line)


def _worded(cell: object) -> tuple[str, str]:
    """A cell's text, and the style of its value."""
    from guestemu.report.page import TableCell

    if isinstance(cell, TableCell):
        return visible(cell.text), _VALUES.get(cell.value, "")
    return visible(str(cell)), ""


def write_document(path: Path, document: Document, option: str = "--html") -> None:
    """A document as an HTML page. Raises `InputError` naming `option`."""
    from guestemu.abi.files import write_atomically
    from guestemu.report.document import document_page

    write_atomically(path, document_page(document).encode(), option)


def note(text: str) -> None:
    """One line for the user on stderr that is not a result."""
    _break_in()
    print(visible(text), file=sys.stderr)


def notes() -> Console:
    """A rich console on stderr for progress and live displays (rich respects NO_COLOR)."""
    from rich.console import Console

    _break_in()
    return Console(stderr=True, highlight=False)


def is_live() -> bool:
    """Whether a display on stderr may redraw itself: a terminal that is not dumb."""
    return sys.stderr.isatty() and not _is_dumb()


def _is_dumb() -> bool:
    return os.environ.get("TERM", "") == "dumb"
