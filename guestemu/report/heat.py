# SPDX-License-Identifier: GPL-2.0-or-later
"""The heat strip: a bar for each function, with what became of a try at each of its places."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
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
    bounds = [number * len(places) // _BAR for number in range(_BAR + 1)]
    return "".join(max(places[low:high], key=_ORDER.index) for low, high in pairwise(bounds))
