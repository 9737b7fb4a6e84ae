# SPDX-License-Identifier: GPL-2.0-or-later
"""The heat strip: a bar for each function, with what became of a try at each of its places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby, pairwise
from typing import Final

from guestemu.migration.sweep.heat import KEPT, LOST, UNDEFINED, Heat
from guestemu.report.strip import StripLine

_ORDER: Final = (KEPT, UNDEFINED, LOST)
_UNICODE: Final = {KEPT: "·", UNDEFINED: "▒", LOST: "█"}
_ASCII: Final = {KEPT: ".", UNDEFINED: "u", LOST: "#"}
_STYLES: Final = {KEPT: "dim", UNDEFINED: "yellow", LOST: "red"}
_NAME: Final = 32
_BAR: Final = 34


def heat_lines(heats: Iterable[Heat], is_ascii: bool = False) -> tuple[StripLine, ...]:
    """One line for each function: its name, tries, and a bar in which a cell is the worst of the
    tries that it stands for; at most 80 columns."""
    glyphs = _ASCII if is_ascii else _UNICODE
    lines = []
    for heat in heats:
        name = heat.function if len(heat.function) < _NAME else f"{heat.function[: _NAME - 3]}.."
        head = f"{name:<{_NAME}} {len(heat.places):>6}  "
        cells = _folded(heat.places)
        parts = [(head, "")]
        parts += ((glyphs[cell], _STYLES[cell]) for cell in cells)
        lines.append(StripLine(tuple(parts)))
    legend = f"{glyphs[KEPT]} kept  {glyphs[UNDEFINED]} undefined bytes differ  {glyphs[LOST]} lost"
    return (*lines, StripLine(((legend, "dim"),)))


def _folded(places: str) -> str:
    """At most `_BAR` letters, each the worst of its part."""
    if len(places) <= _BAR:
        return places
    return _shortened(places, _BAR)


def _shortened(places: str, most: int) -> str:
    """`most` letters, each the worst of its part of `places`."""
    bounds = [number * len(places) // most for number in range(most + 1)]
    return "".join(max(places[low:high], key=_ORDER.index) for low, high in pairwise(bounds))


# SVG ------------------------------------------------------------------------------------------

HEAT_STYLE: Final = (
    ".heat text{font-size:12px;fill:var(--ink)}.heat .kept{fill:var(--area)}"
    ".heat .undefined{fill:var(--shared)}.heat .lost{fill:var(--bad)}"
    ".heat .rail{stroke:var(--grid);fill:none}"
)
_WORDS: Final = {KEPT: "kept", UNDEFINED: "undefined bytes differ", LOST: "lost"}
_CLASSES: Final = {KEPT: "kept", UNDEFINED: "undefined", LOST: "lost"}
_LEFT: Final = 330
_WIDTH: Final = 900
_ROW: Final = 20
_TOP: Final = 24
_SHORTEST: Final = 4
_CHARACTER: Final = 7
_WIDE: Final = 9
"""Of a name in a narrow window, where texts are larger."""


def heat_svg(heats: Sequence[Heat], identity: str) -> str:
    """One bar for each function, as long as its part of all tries, coloured by what became of the
    page; with a legend that counts."""
    if not heats:
        return "<p>nothing to plot</p>"
    top = max(len(heat.places) for heat in heats)
    room = _WIDTH - _LEFT - 10
    rows = []
    for number, heat in enumerate(heats):
        y = _TOP + number * _ROW
        count = len(heat.places)
        shown = _cut(heat.function)
        rows.append(
            f'<text x="{_LEFT - 66}" y="{y + 14}" text-anchor="end">{escape(shown)}</text>'
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{count:,}</text>'
        )
        width = max(_SHORTEST, count * room / top)
        rows += _bar(heat, y, width)
        rows.append(f'<rect class="rail" x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="14"/>')
    return (
        f'<svg id="{identity}" class="heat plot" role="img" '
        f'viewBox="0 0 {_WIDTH} {_TOP + len(heats) * _ROW + 4}" '
        f'aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{_counts(heats)}</title>'
        f'<desc id="{identity}-d">{escape(describe_heat(heats))}</desc>'
        f"{_legend(heats)}{''.join(rows)}</svg>"
    )


def _cut(name: str) -> str:
    most = (_LEFT - 70) // _WIDE
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _bar(heat: Heat, y: int, width: float) -> Iterator[str]:
    """The runs of one letter, each with its places in its title."""
    cells = max(1, min(len(heat.places), int(width)))
    letters = _shortened(heat.places, cells)
    place = 0
    for letter, run in groupby(letters):
        length = len(list(run))
        x, part = _LEFT + place * width / cells, length * width / cells
        first = place * len(heat.places) // cells
        last = (place + length) * len(heat.places) // cells - 1
        place += length
        yield (
            f'<rect class="{_CLASSES[letter]}" x="{x:.1f}" y="{y + 3}" width="{part:.1f}" '
            f'height="14"><title>{escape(heat.function)}, tries {first} to {last}: '
            f"{_WORDS[letter]}</title></rect>"
        )


def _legend(heats: Sequence[Heat]) -> str:
    parts = []
    x = _LEFT
    for letter in _ORDER:
        text = f"{_WORDS[letter]}: {sum(heat.places.count(letter) for heat in heats):,}"
        parts.append(
            f'<rect class="{_CLASSES[letter]}" x="{x}" y="2" width="12" height="12"/>'
            f'<text x="{x + 17}" y="12">{text}</text>'
        )
        x += 30 + _CHARACTER * len(text)
    return "".join(parts)


def _counts(heats: Sequence[Heat]) -> str:
    tries = sum(len(heat.places) for heat in heats)
    lost = sum(heat.places.count(LOST) for heat in heats)
    return f"{tries:,} tries in {len(heats)} functions, {lost:,} lost"


def describe_heat(heats: Iterable[Heat]) -> str:
    """The heat strip read out: a sentence for each function."""
    sentences = []
    for heat in heats:
        counts = [
            f"{heat.places.count(letter)} {_WORDS[letter]}"
            for letter in _ORDER
            if letter in heat.places
        ]
        sentences.append(f"{heat.function}: {', '.join(counts)}.")
    return " ".join(sentences)
