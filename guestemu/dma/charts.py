# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of DMA reports alone: guest memory as a grid of cells, inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from guestemu.dma.sharing import MapCell
from guestemu.report.charts import WIDTH

_CELL: Final = 12


def address_map(cells: Sequence[MapCell], identity: str) -> str:
    """Cells in rows, addresses growing to the right and down; darker: more pages were shared."""
    if not cells:
        return "<p>nothing to plot</p>"
    columns = min(64, max(16, math.isqrt(len(cells))))
    rows = -(-len(cells) // columns)
    rects = []
    for index, cell in enumerate(cells):
        if not cell.conversions:
            continue
        x, y = index % columns * _CELL, index // columns * _CELL
        depth = 0.25 + 0.75 * cell.peak_shared / cell.pages
        kind = "now" if cell.shared else "was"
        rects.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
            f'fill-opacity="{depth:.2f}"><title>{cell.gfn << 12:#x}: at most {cell.peak_shared} of '
            f"{cell.pages} pages shared, {cell.shared} at the end, {cell.conversions} conversions"
            f"</title></rect>"
        )
    width, height = columns * _CELL, rows * _CELL
    return (
        f'<svg id="{identity}" viewBox="0 0 {width} {height}" role="img" '
        f'style="max-width:{max(width, WIDTH // 2)}px">'
        f'<rect class="frame" width="{width}" height="{height}"/>{"".join(rects)}</svg>'
    )
