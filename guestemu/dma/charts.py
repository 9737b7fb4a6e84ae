# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of DMA reports alone: guest memory as a grid of cells, inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.dma.sharing import MapCell
from guestemu.report.charts import nice_ticks

_CELL: Final = 13
_COLUMNS: Final = 64
_LABELS: Final = 16
_APART: Final = 8
_LEFT: Final = 100
_TOP: Final = 18
FEW_CELLS: Final = 24
"""So many cells in use, or fewer, are drawn as a bar each."""
_BARS: Final = 900
_BAR_LEFT: Final = 230
_BAR_HEIGHT: Final = 24
_BAR_TOP: Final = 22


def address_map(cells: Sequence[MapCell], identity: str) -> str:
    """Cells in rows, addresses growing to the right and down, from the first row in use to the
    last; darker: more pages were shared. Rows are labelled with their first address, columns with
    what they add to it. Where few cells are in use, each is a bar instead, with its figures."""
    used = [index for index, cell in enumerate(cells) if cell.conversions]
    if not used:
        return "<p>nothing to plot</p>"
    if len(used) <= FEW_CELLS:
        return _bars([cells[index] for index in used], identity)
    columns = min(_COLUMNS, max(16, math.isqrt(len(cells))))
    first, last = used[0] // columns, used[-1] // columns
    step = max(1, -(-(last - first + 1) // _LABELS))
    bytes_of = cells[0].pages << PAGE_SHIFT
    parts = []
    for place in range(0, columns, max(columns // 4, _APART)):
        x = _LEFT + place * _CELL
        parts.append(f'<text x="{x}" y="12">+{_size(place * bytes_of)}</text>')
    for row in range(first, last + 1, step):
        y = _TOP + (row - first) * _CELL + _CELL - 2
        address = cells[row * columns].gfn << PAGE_SHIFT
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" text-anchor="end">{address:#x}</text>')
    parts.append(f'<text x="{_LEFT - 6}" y="12" text-anchor="end">GPA</text>')
    rects = []
    for index in used:
        cell = cells[index]
        x, y = _LEFT + index % columns * _CELL, _TOP + (index // columns - first) * _CELL
        depth = 0.25 + 0.75 * cell.peak_shared / cell.pages
        kind = "now" if cell.shared else "was"
        rects.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
            f'fill-opacity="{depth:.2f}"><title>{cell.gfn << PAGE_SHIFT:#x}: at most '
            f"{cell.peak_shared} of {cell.pages} pages shared, {cell.shared} at the end, "
            f"{cell.conversions} conversions</title></rect>"
        )
    width, height = columns * _CELL, (last - first + 1) * _CELL
    low = cells[used[0]].gfn << PAGE_SHIFT
    high = (cells[used[-1]].gfn + cells[used[-1]].pages << PAGE_SHIFT) - 1
    whole = _LEFT + width + 60
    return (
        f'<svg id="{identity}" viewBox="0 0 {whole} {_TOP + height + 4}" '
        f'style="max-width:{whole}px;min-width:{min(whole, 620)}px" role="img" '
        f'aria-label="Shared pages between {low:#x} and {high:#x}">'
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}"/>'
        f"{''.join(parts)}{''.join(rects)}</svg>"
    )


def _bars(cells: Sequence[MapCell], identity: str) -> str:
    """A row for each cell: its addresses, how much of it was shared at most, and how much still
    is."""
    room = _BARS - _BAR_LEFT - 240
    bottom = _BAR_TOP + len(cells) * _BAR_HEIGHT
    most = cells[0].pages
    rows = [
        f'<text x="{_BAR_LEFT - 8}" y="14" text-anchor="end">guest address (GPA)</text>',
        f'<text x="{_BAR_LEFT}" y="14">shared pages of {most:,}</text>',
    ]
    for tick in nice_ticks(0, most):
        x = _BAR_LEFT + room * tick / most
        rows.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_BAR_TOP}" y2="{bottom + 4}"/>'
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:,.0f}</text>'
        )
    for place, cell in enumerate(cells):
        y = _BAR_TOP + place * _BAR_HEIGHT
        first, last = cell.gfn << PAGE_SHIFT, (cell.gfn + cell.pages << PAGE_SHIFT) - 1
        peak, now = (room * count / cell.pages for count in (cell.peak_shared, cell.shared))
        rows.append(
            f'<text x="{_BAR_LEFT - 8}" y="{y + 16}" text-anchor="end">{first:#x}-{last:#x}</text>'
            f'<rect class="frame" x="{_BAR_LEFT}" y="{y + 4}" width="{room}" height="15"/>'
            f'<rect class="was" x="{_BAR_LEFT}" y="{y + 4}" width="{peak:.1f}" height="15"/>'
            f'<rect class="now" x="{_BAR_LEFT}" y="{y + 4}" width="{now:.1f}" height="15"/>'
            f'<text x="{_BAR_LEFT + room + 8}" y="{y + 16}">at most {cell.peak_shared:,}, '
            f"{cell.shared:,} at the end</text>"
        )
    return (
        f'<svg id="{identity}" class="plot" viewBox="0 0 {_BARS} {bottom + 24}" '
        f'role="img" aria-label="Shared pages in {len(cells)} ranges of '
        f'{_size(cells[0].pages << PAGE_SHIFT)}">{"".join(rows)}</svg>'
    )


def _size(count: int) -> str:
    """Bytes as KiB, MiB or GiB."""
    for shift, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >> shift:
            return f"{count / (1 << shift):.4g} {name}"
    return "0"
