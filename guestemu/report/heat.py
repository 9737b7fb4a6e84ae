# SPDX-License-Identifier: GPL-2.0-or-later
"""The heat strip: what became of a try at each place of a run, grouped by function.

A place is kept, undefined (only bytes without a defined content differ) or lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

import msgspec

from guestemu.report.strip import StripLine

KEPT: Final = "."
UNDEFINED: Final = "u"
LOST: Final = "L"

_ORDER: Final = (KEPT, UNDEFINED, LOST)
_UNICODE: Final = {KEPT: "·", UNDEFINED: "▒", LOST: "█"}
_ASCII: Final = {KEPT: ".", UNDEFINED: "u", LOST: "#"}
_STYLES: Final = {KEPT: "dim", UNDEFINED: "yellow", LOST: "red"}
_NAME: Final = 32
_BAR: Final = 34


class Heat(msgspec.Struct, frozen=True):
    """The tries in one function, in the order of time: a letter of this module each."""

    function: str
    places: str


def heat_of(tries: Iterable[tuple[str, str]]) -> tuple[Heat, ...]:
    """Heats by function, in the order in which the functions come first, of (function, letter)."""
    found: dict[str, list[str]] = {}
    for function, letter in tries:
        found.setdefault(function, []).append(letter)
    return tuple(Heat(function, "".join(letters)) for function, letters in found.items())


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
    bounds = [number * len(places) // _BAR for number in range(_BAR + 1)]
    return "".join(max(places[low:high], key=_ORDER.index) for low, high in pairwise(bounds))
