# SPDX-License-Identifier: GPL-2.0-or-later
"""The report page: well formed, nothing fetched, and drawn by a real browser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from recorded import trace_path

from guestemu.dma.document import dma_document
from guestemu.dma.events import Alloc
from guestemu.dma.model import ModelRun
from guestemu.dma.sharing import MapCell
from guestemu.dma.source import open_trace
from guestemu.guest.dma.gfp import GFP_KERNEL
from guestemu.report.document import document_page

if TYPE_CHECKING:
    from tests.conftest import Drawn

PLOTS = ("shared-over-time", "driver-lanes", "address-map", "lifetimes", "device-hypercalls")


@pytest.fixture(scope="module")
def page() -> str:
    run = ModelRun("6.1", 256)
    with open_trace(trace_path("churn")) as reader:
        for event in reader:
            run.step(event)
    return document_page(dma_document(run.report(), "churn on model:6.1", run.address_map()))


def plots(page: str) -> dict[str, ET.Element]:
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return {root.get("id", ""): root for root in map(ET.fromstring, found)}


def test_every_plot_is_there_and_nothing_is_fetched(page: str) -> None:
    assert tuple(plots(page)) == PLOTS
    assert not re.search(r"src\s*=|href=\"[^#]|url\(|@import", page)
    bars = plots(page)["device-hypercalls"].findall("rect")
    assert len(bars) == 12
    rows = plots(page)["address-map"].findall("rect[@class='frame']")
    assert len(rows) == 3


def test_a_drivers_lane_and_its_row_have_one_number(page: str) -> None:
    lanes = plots(page)["driver-lanes"]
    drawn = dict(re.findall(r"(\S+) at most ([\d,]+)", lanes.get("aria-label", "")))
    table = page[page.index("<h2>Drivers</h2>") :].partition("</table>")[0]
    rows = dict(re.findall(r"<tr><td>([^<]+)<td>([\d,]*)<", table))
    assert len(drawn) > 3
    assert drawn == {name: most for name, most in rows.items() if most not in ("", "0")}


def test_names_from_a_trace_are_escaped() -> None:
    run = ModelRun("6.1", 64)
    run.step(Alloc(1, 1, 0, "t", "<script>", "<b>", 1 << 24, 4096, GFP_KERNEL))
    page = document_page(dma_document(run.report(), "a&b", run.address_map()))
    assert page.count("<script>") == 1
    assert "&lt;script&gt; &lt;b&gt;" in page


def test_few_cells_are_bars_with_their_addresses_and_figures() -> None:
    run = ModelRun("6.1", 64)
    cells = tuple(MapCell(n << 9, 512, 256 * (n == 2), 128 * (n == 2), n == 2) for n in range(32))
    root = plots(document_page(dma_document(run.report(), "few", cells)))["address-map"]
    texts = [text.text for text in root.findall("text")]
    assert texts[:2] == ["guest address (GPA)", "shared pages of 512"]
    assert texts[2:-2] == ["0", "200", "400"]
    assert texts[-2:] == ["0x400000-0x5fffff", "at most 256, 128 at the end"]
    widths = {one.get("class"): float(one.get("width", "")) for one in root.findall("rect")}
    assert widths["was"] == 2 * widths["now"] == widths["frame"] / 2


def test_a_full_map_has_one_rectangle_per_cell() -> None:
    run = ModelRun("6.1", 64)
    cells = tuple(MapCell(gfn << 16, 1 << 16, 1 << 16, 0, 1) for gfn in range(4096))
    root = plots(document_page(dma_document(run.report(), "full", cells)))["address-map"]
    assert len(root.findall("rect")) == 4097


def test_a_browser_draws_it(page: str, draw: Callable[[str], Drawn]) -> None:
    width, colours, document = draw(page)
    assert width == 1000
    assert colours > 50
    assert [name for name in PLOTS if f'id="{name}"' in document] == list(PLOTS)
