# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of DMA reports alone: guest memory as a grid of cells, inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.dma.sharing import MapCell

_CELL: Final = 13
_COLUMNS: Final = 64
_LABELS: Final = 16
_APART: Final = 8
_LEFT: Final = 100
_TOP: Final = 18


def address_map(cells: Sequence[MapCell], identity: str) -> str:
    """Cells in rows, addresses growing to the right and down, from the first row in use to the
    last; darker: more pages were shared. Rows are labelled with their first address, columns with
    what they add to it."""
    used = [index for index, cell in enumerate(cells) if cell.conversions]
    if not used:
        return "<p>nothing to plot</p>"
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


def _size(count: int) -> str:
    """Bytes as KiB, MiB or GiB."""
    for shift, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >> shift:
            return f"{count / (1 << shift):.4g} {name}"
    return "0"
