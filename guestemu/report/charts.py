# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots as inline SVG, without any library: a level over time, bars; and as files of their own.

Every text is escaped: texts come from traces and programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

import msgspec

WIDTH: Final = 900
HEIGHT: Final = 240
STYLE: Final = (
    ".area{fill:var(--area,#b9cdf0)}"
    ".line{fill:none;stroke:var(--private,#2456b3);stroke-width:1.5}"
    ".bar{fill:var(--private,#2456b3)}.grid{stroke:var(--line,#cdd3de)}"
    ".band{fill:var(--panel,#eef1f6);stroke:var(--line,#cdd3de)}"
    ".pass{fill:var(--shared,#f3d27a);stroke:var(--sharedline,#8a6510)}"
)
"""How the parts of a plot look, in the page's colours where it has any; a page has it once."""

_LEFT: Final = 70
_BOTTOM: Final = 28
_TOP: Final = 26
_BAR: Final = 24
_TICKS: Final = 5
_LABEL: Final = 320
_CHARACTER: Final = 7
_WIDE: Final = 9
"""Of a name in a narrow window, where texts are larger."""
_LANE: Final = 20
_LANE_HEIGHT: Final = 34
_LANE_LEFT: Final = 170
_LANE_RIGHT: Final = 70
_LANE_NAME: Final = 18


class Band(msgspec.Struct, frozen=True):
    """From `begin` to `end` on the axis of a chart, in a lane with others of its kind."""

    begin: float
    end: float
    lane: str
    name: str


def nice_ticks(low: float, high: float, most: int = _TICKS) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten) between `low` and `high`, at most `most`."""
    span = high - low
    if span <= 0:
        return (low,)
    step = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= most:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return tuple(
        round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)
    )


def tick_text(value: float, unit: str) -> str:
    """A tick in a unit that people read: seconds as ms, s, min or h; other numbers with commas."""
    if unit != "s":
        text = f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"
        return f"{text} {unit}".rstrip()
    magnitude = abs(value)
    for limit, factor, name in (
        (1e-3, 1e6, "µs"),
        (1, 1e3, "ms"),
        (120, 1, "s"),
        (7200, 1 / 60, "min"),
    ):
        if magnitude < limit:
            return f"{value * factor:,.4g} {name}" if value else "0 s"
    return f"{value / 3600:,.4g} h"


def step_chart(
    points: Sequence[tuple[float, float, float]],
    unit: str,
    identity: str,
    along: str = "s",
    bands: Sequence[Band] = (),
) -> str:
    """A level over time: (seconds, highest, last) per bucket; the area is what was highest. `along`
    is the unit of the first, if it is not seconds. `bands` are drawn above it, on the same axis."""
    if not points:
        return "<p>nothing to plot</p>"
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1e-9)
    top = max(1.0, *(highest for _, highest, _ in points))
    above = _LANE * len({band.lane for band in bands})
    left = max((_WIDE * len(band.lane) + 12 for band in bands), default=_LEFT)
    left = max(left, _LEFT)
    inner_width, inner_height = WIDTH - left - 14, HEIGHT - _BOTTOM - _TOP

    def across(x: float) -> float:
        return left + (min(max(x, start), end) - start) / (end - start) * inner_width

    def place(x: float, y: float) -> str:
        return f"{across(x):.1f},{above + _TOP + inner_height - y / top * inner_height:.1f}"

    area = [place(start, 0)]
    line = []
    previous = points[0][2]
    for x, highest, last in points:
        area += [place(x, previous), place(x, highest), place(x, last)]
        line += [place(x, previous), place(x, last)]
        previous = last
    area += [place(end, previous), place(end, 0)]
    bottom = above + _TOP + inner_height
    heights = [(tick, bottom - tick / top * inner_height) for tick in nice_ticks(0, top)]
    marks = "".join(
        f'<line class="grid" x1="{left}" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{tick_text(tick, "")}</text>'
        for tick, y in heights
    )
    times = "".join(
        f'<text x="{across(tick):.0f}" y="{bottom + 18:.0f}" text-anchor="middle">'
        f"{escape(tick_text(tick, along))}</text>"
        for tick in nice_ticks(start, end)
    )
    return (
        f'<svg id="{identity}" class="plot" viewBox="0 0 {WIDTH} {above + HEIGHT}" role="img" '
        f'aria-label="{escape(unit)} over time, at most {top:,.6g}">'
        f"<title>{escape(unit)} over time, at most {top:,.6g}</title>"
        f'<text x="{left}" y="{above + 14}">{escape(unit)}</text>{marks}'
        f'<polygon class="area" points="{" ".join(area)}"/>'
        f'<polyline class="line" points="{" ".join(line)}"/>{times}'
        f"{_bands(bands, across, left)}</svg>"
    )


def _bands(bands: Sequence[Band], across: Callable[[float], float], origin: float) -> str:
    """Lanes with their bands, labelled where there is room."""
    lanes = list(dict.fromkeys(band.lane for band in bands))
    parts = []
    for band in bands:
        y = lanes.index(band.lane) * _LANE
        left, right = across(band.begin), across(band.end)
        width = max(right - left, 1.5)
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{y + 1}" width="{width:.1f}" height="16">'
            f"<title>{escape(band.lane)}: {escape(band.name)}</title></rect>"
        )
        if width > _CHARACTER * len(band.name) + 6:
            parts.append(f'<text x="{left + 3:.1f}" y="{y + 13}">{escape(band.name)}</text>')
    parts += (
        f'<text x="{origin - 6}" y="{place * _LANE + 13}" text-anchor="end">{escape(lane)}</text>'
        for place, lane in enumerate(lanes)
    )
    return "".join(parts)


class Lane(msgspec.Struct, frozen=True):
    """A level of its own over time: points as those of `step_chart`, and the highest."""

    name: str
    points: tuple[tuple[float, float, float], ...]
    highest: float


def lane_chart(
    lanes: Sequence[Lane],
    unit: str,
    identity: str,
    span: tuple[float, float],
    bands: Sequence[Band],
) -> str:
    """Levels below each other on one axis of seconds, from `span[0]` to `span[1]`, each on a scale
    of its own whose highest value stands at its right; `bands` above, as in `step_chart`."""
    if not lanes:
        return "<p>nothing to plot</p>"
    start, end = span[0], max(span[1], span[0] + 1e-9)
    top = _LANE * len({band.lane for band in bands}) + 20
    left, right = _LANE_LEFT, WIDTH - _LANE_RIGHT

    def across(x: float) -> float:
        return left + (min(max(x, start), end) - start) / (end - start) * (right - left)

    parts = []
    for place, lane in enumerate(lanes):
        bottom = top + (place + 1) * _LANE_HEIGHT
        scale = (_LANE_HEIGHT - 8) / max(1.0, lane.highest)
        area = [f"{left},{bottom}"]
        previous = 0.0
        for x, highest, last in lane.points:
            area += (
                f"{across(x):.1f},{bottom - level * scale:.1f}"
                for level in (previous, highest, last)
            )
            previous = last
        area += [f"{right},{bottom - previous * scale:.1f}", f"{right},{bottom}"]
        shown = lane.name if len(lane.name) <= _LANE_NAME else f"{lane.name[: _LANE_NAME - 1]}…"
        most = tick_text(lane.highest, "")
        parts.append(
            f'<polygon class="area" points="{" ".join(area)}">'
            f"<title>{escape(lane.name)}: at most {most} {escape(unit)}</title></polygon>"
            f'<line class="grid" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
            f'<text x="{left - 6}" y="{bottom - 8}" text-anchor="end">{escape(shown)}</text>'
            f'<text x="{right + 6}" y="{bottom - 8}">{most}</text>'
        )
    bottom = top + len(lanes) * _LANE_HEIGHT
    times = "".join(
        f'<text x="{across(tick):.0f}" y="{bottom + 18}" text-anchor="middle">'
        f"{escape(tick_text(tick, 's'))}</text>"
        for tick in nice_ticks(start, end)
    )
    named = "; ".join(f"{lane.name} at most {tick_text(lane.highest, '')}" for lane in lanes)
    return (
        f'<svg id="{identity}" class="plot" viewBox="0 0 {WIDTH} {bottom + _BOTTOM}" role="img" '
        f'aria-label="{escape(unit)} over time: {escape(named)}">'
        f'<text x="{right + 6}" y="{top - 6}">at most</text>'
        f"{''.join(parts)}{times}{_bands(bands, across, left)}</svg>"
    )


def bar_chart(bars: Sequence[tuple[str, float]], identity: str, unit: str = "") -> str:
    """Labelled horizontal bars, in the order given; a long label is cut and kept in its title."""
    if not bars:
        return "<p>nothing to plot</p>"
    top = max(1.0, *(value for _, value in bars))
    most = _LABEL // _WIDE
    rows = []
    for index, (label, value) in enumerate(bars):
        y = index * _BAR
        width = value / top * (WIDTH - _LABEL - 110)
        shown = label if len(label) <= most else f"{label[: most - 1]}…"
        number = tick_text(value, unit.removesuffix("s") if value == 1 else unit)
        rows.append(
            f'<text x="{_LABEL - 8}" y="{y + 16}" text-anchor="end">{escape(shown)}</text>'
            f'<rect class="bar" x="{_LABEL}" y="{y + 4}" width="{width:.1f}" height="15">'
            f"<title>{escape(label)}: {escape(number)}</title></rect>"
            f'<text x="{_LABEL + width + 6:.1f}" y="{y + 16}">{escape(number)}</text>'
        )
    named = "; ".join(f"{label} {tick_text(value, unit)}" for label, value in bars[:12])
    return (
        f'<svg id="{identity}" class="plot" viewBox="0 0 {WIDTH} {len(bars) * _BAR + 4}" '
        f'role="img" aria-label="{escape(named)}">{"".join(rows)}</svg>'
    )


def svg_file(chart: str) -> str:
    """A chart as a file: white behind it, so that it can be read on any page. Raises `ValueError`
    for a chart that has nothing to plot."""
    opening, _, rest = chart.partition(">")
    if not opening.startswith("<svg "):
        raise ValueError("nothing to plot")
    return (
        f'{opening} xmlns="http://www.w3.org/2000/svg" '
        f'style="background:#fff;font:12px sans-serif"><style>{STYLE}</style>{rest}\n'
    )


def inline_svg(text: str) -> str:
    """The chart of `svg_file`, to be put into a page, whose colours it then has."""
    start, end = text.index(" xmlns="), text.index("</style>") + len("</style>")
    return f"{text[:start]}>{text[end:].rstrip()}"
