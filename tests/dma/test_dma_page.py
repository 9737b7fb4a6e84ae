# SPDX-License-Identifier: GPL-2.0-or-later
"""The report page: well formed, nothing fetched, and drawn by a real browser."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import pytest
from recorded import trace_path

from guestemu.dma.events import Alloc
from guestemu.dma.model import ModelRun
from guestemu.dma.page import report_page
from guestemu.dma.sharing import MapCell
from guestemu.dma.source import open_trace
from guestemu.guest.dma.gfp import GFP_KERNEL

PLOTS = ("shared-over-time", "lifetimes", "address-map", "device-hypercalls")


@pytest.fixture(scope="module")
def page() -> str:
    run = ModelRun("6.1", 256)
    with open_trace(trace_path("churn")) as reader:
        for event in reader:
            run.step(event)
    return report_page(run.report(), "churn on model:6.1", run.address_map())


def plots(page: str) -> dict[str, ET.Element]:
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return {root.get("id", ""): root for root in map(ET.fromstring, found)}


def test_every_plot_is_there_and_nothing_is_fetched(page: str) -> None:
    assert tuple(plots(page)) == PLOTS
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script", page)
    bars = plots(page)["device-hypercalls"].findall("rect")
    assert len(bars) == 12
    cells = [cell for cell in plots(page)["address-map"].findall("rect") if cell.get("x")]
    assert len(cells) == 3


def test_names_from_a_trace_are_escaped() -> None:
    run = ModelRun("6.1", 64)
    run.step(Alloc(1, 1, 0, "t", "<script>", "<b>", 1 << 24, 4096, GFP_KERNEL))
    page = report_page(run.report(), "a&b", run.address_map())
    assert "<script>" not in page
    assert "&lt;script&gt; &lt;b&gt;" in page


def test_a_full_map_has_one_rectangle_per_cell() -> None:
    run = ModelRun("6.1", 64)
    cells = tuple(MapCell(gfn << 16, 1 << 16, 1 << 16, 0, 1) for gfn in range(4096))
    root = plots(report_page(run.report(), "full", cells))["address-map"]
    assert len(root.findall("rect")) == 4097


def chromium() -> str:
    """A browser; CI installs one, elsewhere a missing one skips the test."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI") == "true":
        subprocess.run(["apt-get", "install", "-y", "chromium"], check=False)
        found = shutil.which("chromium")
        assert found is not None, "CI has no chromium and cannot install it"
    if found is None:
        pytest.skip("no chromium")
    return found


def pixels(png: bytes) -> tuple[int, set[bytes]]:
    """Width and the set of pixels of an 8-bit PNG whose rows may be filtered (colours are then
    those of the filtered rows, which is enough to tell a drawn page from a blank one)."""
    assert png.startswith(b"\x89PNG")
    position, data, width, depth = 8, b"", 0, 0
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, _, _, colour = struct.unpack_from(">IIBB", body)
            depth = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        position += 12 + length
    raw = zlib.decompress(data)
    row = 1 + width * depth
    return width, {raw[at : at + depth] for at in range(1, min(len(raw), row * 400), depth)}


def test_a_browser_draws_it(page: str, tmp_path: Path) -> None:
    source, shot = tmp_path / "page.html", tmp_path / "page.png"
    source.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1600"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", source.as_uri()]
    browser = chromium()
    subprocess.run([browser, *flags, *where], check=True, capture_output=True, timeout=120)
    width, colours = pixels(shot.read_bytes())
    assert width == 1000
    assert len(colours) > 50
    dump = subprocess.run(
        [browser, *flags, where[0], "--dump-dom", source.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert [name for name in PLOTS if f'id="{name}"' in dump] == list(PLOTS)
