# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots as inline SVG, without any library: a level over time, bars; and as files of their own.

Every text is escaped: texts come from traces and programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 900
HEIGHT: Final = 220
STYLE: Final = (
    ".area{fill:#b9cdf0}.line{fill:none;stroke:#2456b3;stroke-width:1.5}.bar{fill:#3f72c9}"
)
"""How the parts of a plot look; a page has it once."""

_LEFT: Final = 70
_BOTTOM: Final = 26
_TOP: Final = 10
_BAR: Final = 22


def step_chart(
    points: Sequence[tuple[float, float, float]], unit: str, identity: str, along: str = "s"
) -> str:
    """A level over time: (seconds, highest, last) per bucket; the area is what was highest. `along`
    is the unit of the first, if it is not seconds."""
    if not points:
        return "<p>nothing to plot</p>"
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1e-9)
    top = max(1.0, *(highest for _, highest, _ in points))
    inner_width, inner_height = WIDTH - _LEFT, HEIGHT - _BOTTOM - _TOP

    def place(x: float, y: float) -> str:
        return (
            f"{_LEFT + (x - start) / (end - start) * inner_width:.1f},"
            f"{_TOP + inner_height - y / top * inner_height:.1f}"
        )

    area = [place(start, 0)]
    line = []
    previous = points[0][2]
    for x, highest, last in points:
        area += [place(x, previous), place(x, highest), place(x, last)]
        line += [place(x, previous), place(x, last)]
        previous = last
    area += [place(end, previous), place(end, 0)]
    marks = "".join(
        f'<text x="{_LEFT - 6}" y="{_TOP + inner_height * (1 - part) + 4:.0f}" '
        f'text-anchor="end">{top * part:,.0f}</text>'
        for part in (0, 0.5, 1)
    )
    times = "".join(
        f'<text x="{_LEFT + inner_width * part:.0f}" y="{HEIGHT - 6}" '
        f'text-anchor="{"start" if part == 0 else "end" if part == 1 else "middle"}">'
        f"{start + (end - start) * part:.6g} {escape(along)}</text>"
        for part in (0, 0.5, 1)
    )
    return (
        f'<svg id="{identity}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<title>{escape(unit)} over time</title><polygon class="area" points="{" ".join(area)}"/>'
        f'<polyline class="line" points="{" ".join(line)}"/>{marks}{times}</svg>'
    )


def bar_chart(bars: Sequence[tuple[str, float]], identity: str) -> str:
    """Labelled horizontal bars, in the order given."""
    if not bars:
        return "<p>nothing to plot</p>"
    top = max(1.0, *(value for _, value in bars))
    label_width = 260
    rows = []
    for index, (label, value) in enumerate(bars):
        y = index * _BAR
        width = value / top * (WIDTH - label_width - 110)
        rows.append(
            f'<text x="{label_width - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="bar" x="{label_width}" y="{y + 4}" width="{width:.1f}" height="14"/>'
            f'<text x="{label_width + width + 6:.1f}" y="{y + 15}">{value:,.6g}</text>'
        )
    return (
        f'<svg id="{identity}" viewBox="0 0 {WIDTH} {len(bars) * _BAR + 4}" role="img">'
        f"{''.join(rows)}</svg>"
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
