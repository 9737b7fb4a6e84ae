# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verb found, as one struct that becomes lines of a terminal or an HTML page.

A verb makes a `Document` of its report; `console.emit_document` prints it, `document_page` writes
the page. A verb writes no HTML of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Final, TypeAlias

import msgspec

from guestemu.migration.sweep.heat import Heat
from guestemu.report.card import Card, card_html
from guestemu.report.heat import heat_lines, heat_svg
from guestemu.report.page import command_line, figure, html_page, section, table
from guestemu.report.race import Race, race_figure, race_lines
from guestemu.report.strip import (
    Strip,
    StripLine,
    strip_legend,
    strip_lines,
    strip_svg,
    strip_words,
)

Drawn: TypeAlias = Race | Strip | tuple[Heat, ...]


class Paragraph(msgspec.Struct, frozen=True):
    """A text. `style` is that of a line in a terminal; on a page "red", "green", "dim" count, and
    `to` is the place that the text leads to."""

    text: str
    style: str = ""
    to: str = ""


class Grid(msgspec.Struct, frozen=True):
    """A table: rows of texts, numbers and `TableCell`s, which lead to other places of the page.
    Names and their values need no headings.

    `is_words`: cells stand on the left. With `row_id` cells lead to row N as "`row_id`-N".
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    title: str = ""
    is_words: bool = False
    row_id: str = ""


class Picture(msgspec.Struct, frozen=True):
    """A picture, drawn with signs in a terminal and as SVG on a page. `said`: the sentence of a
    strip that stands elsewhere already."""

    title: str
    drawn: Drawn
    said: str = ""


class Svg(msgspec.Struct, frozen=True):
    """A picture that only a page has, as SVG, and its name. `has_caption`: the name stands below
    it, where no heading says it."""

    title: str
    text: str
    has_caption: bool = False


class Bullets(msgspec.Struct, frozen=True):
    """Lines of equal rank, such as what is wrong."""

    lines: tuple[str, ...]
    style: str = ""


class Item(msgspec.Struct, frozen=True):
    """A line in `style`, and what belongs to it below, `indent` columns further right in a
    terminal. With a `label` that alone has the style, and the text stands behind it."""

    text: str
    contents: tuple[Content, ...] = ()
    style: str = ""
    label: str = ""
    indent: int = 2


class Legend(msgspec.Struct, frozen=True):
    """What colours of cells mean: words with "good", "bad" or "warn"."""

    entries: tuple[tuple[str, str], ...]


class Heading(msgspec.Struct, frozen=True):
    """A smaller heading, to which cells of a table lead."""

    text: str
    identity: str


class Code(msgspec.Struct, frozen=True):
    """Lines as they are: a program, a console. `is_command`: one line, to be copied."""

    text: str
    is_command: bool = False


Content: TypeAlias = (
    Paragraph | Grid | Picture | Svg | Bullets | Item | Legend | Heading | Code | Card
)


class Chapter(msgspec.Struct, frozen=True):
    """Contents under a heading ("" for none). `identity` is where cells lead to; `is_page_only`:
    a terminal shows it by other means or not at all."""

    title: str
    contents: tuple[Content, ...]
    identity: str = ""
    is_page_only: bool = False


class Document(msgspec.Struct, frozen=True):
    """What stands directly under a title (`lead`), then chapters. Lines of a terminal may do
    without the title."""

    title: str
    chapters: tuple[Chapter, ...] = ()
    lead: tuple[Content, ...] = ()


def cited_facts(cards: Iterable[Card]) -> Iterator[Content]:
    """Every fact that the cards cite, in full; the cards lead to it."""
    rules = {rule.id: rule for card in cards for rule in card.rules}
    for rule in rules.values():
        yield Heading(rule.id, f"fact-{rule.id}")
        yield Paragraph(rule.text)
        yield Paragraph(rule.source, "dim")


def document_page(document: Document) -> str:
    """The HTML page."""
    parts = [f"<h1>{escape(document.title)}</h1>", _body(document.lead, "lead")]
    for number, chapter in enumerate(document.chapters):
        body = _body(chapter.contents, f"picture-{number}")
        parts.append(section(chapter.title, body, chapter.identity) if chapter.title else body)
    return html_page(document.title, parts)


def _body(contents: Iterable[Content], identity: str) -> str:
    return "".join(_html(content, f"{identity}-{place}") for place, content in enumerate(contents))


_CLASSES: Final = {"red": ' class="bad"', "green": ' class="good"', "dim": ' class="dim"'}


def _html(content: Content, identity: str) -> str:
    match content:
        case Item():
            return _item(content, identity)
        case Grid(headings, rows, title):
            return table(
                headings,
                rows,
                title,
                is_sortable=len(rows) > 1 and bool(headings),
                is_words=content.is_words,
                row_id=content.row_id,
            )
        case Card():
            return card_html(content)
        case Picture():
            return _picture(content, identity)
        case Svg(title, text, has_caption):
            caption = f"<p class=legend>{escape(title)}</p>" if has_caption else ""
            return figure(title, text) + caption
        case Legend(entries):
            cells = "".join(
                f'<td class="v-{escape(value)}">{escape(word)}</td>' for word, value in entries
            )
            return (
                f'<table class="legend" aria-label="Legend"><tbody><tr>{cells}</tr></tbody></table>'
            )
        case _:
            return _text(content)


def _text(content: Paragraph | Bullets | Heading | Code) -> str:
    match content:
        case Paragraph(text, style, to):
            words = f'<a href="#{escape(to)}">{escape(text)}</a>' if to else escape(text)
            return f"<p{_CLASSES.get(style, '')}>{words}</p>"
        case Bullets(lines, style):
            items = "".join(f"<li>{escape(line)}</li>" for line in lines)
            return f"<ul{_CLASSES.get(style, '')}>{items}</ul>"
        case Heading(text, place):
            return f'<h3 id="{escape(place)}">{escape(text)}</h3>'
        case Code(text, is_command):
            return command_line(text) if is_command else f"<pre>{escape(text)}</pre>"


def _item(item: Item, identity: str) -> str:
    style = _CLASSES.get(item.style, "")
    head = f"<p{style}>{escape(item.text)}</p>"
    if item.label:
        head = f"<p><b{style}>{escape(item.label)}</b>{escape(item.text)}</p>"
    below = f"<div>{_body(item.contents, identity)}</div>" if item.contents else ""
    return f"<div class=item>{head}{below}</div>"


def _picture(content: Picture, identity: str) -> str:
    picture = figure(content.title, picture_svg(content.drawn, identity))
    if isinstance(content.drawn, Strip):
        return strip_legend(content.drawn) + picture + strip_words(content.drawn, content.said)
    return picture


def picture_svg(drawn: Drawn, identity: str) -> str:
    """A picture as inline SVG with the page's colours."""
    match drawn:
        case Race():
            return race_figure(drawn, identity)
        case Strip():
            return strip_svg(drawn, identity)
        case _:
            return heat_svg(drawn, identity)


def picture_lines(drawn: Drawn, is_ascii: bool = False, said: str = "") -> tuple[StripLine, ...]:
    """A picture for a terminal of 80 columns."""
    match drawn:
        case Race():
            return race_lines(drawn, is_ascii)
        case Strip():
            return strip_lines(drawn, is_ascii, said)
        case _:
            return heat_lines(drawn, is_ascii)
