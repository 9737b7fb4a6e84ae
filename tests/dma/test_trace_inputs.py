# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that people give to `guestemu dma` and that are not the text of a trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from guestemu.cli.main import main

Captured = pytest.CaptureFixture[str]
MAPS = (
    " kworker/0:1-12 [000] ..... 1.000001: dma_map_page: 0000:00:06.0 dir=TO_DEVICE "
    "dma_addr=1000 size=4096 phys_addr=1000 attrs=\n"
    " kworker/0:1-12 [000] ..... 1.000002: dma_unmap_page: 0000:00:06.0 dir=TO_DEVICE "
    "dma_addr=1000 size=4096 attrs=\n"
)
BPFTRACE = """event,time_ns,device,address,size
alloc,100,0000:00:06.0,0xffff888003ddc000,8192
free,200,0000:00:06.0,0xffff888003ddc000,8192
"""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(MAPS.encode()), "compressed by gzip; read it with `zcat FILE | guestemu"),
        (b"PERFILE2" + bytes(64), "a binary perf file; convert it with `perf script -i FILE"),
        (MAPS.encode(), "2 streaming mappings (dma_map_*, dma_unmap_*), no dma_alloc, "),
        (b"nothing\n", "no dma_alloc or dma_free event in 1 lines"),
    ],
)
def test_what_it_is_and_what_to_do_is_said(
    data: bytes, message: str, tmp_path: Path, capsys: Captured
) -> None:
    trace = tmp_path / "x.trace"
    trace.write_bytes(data)
    assert main(["dma", str(trace), "--guest", "model:6.1"]) == 2
    err = capsys.readouterr().err
    assert f"{trace}: {message}" in err


def test_the_csv_that_bpftrace_prints_is_read(tmp_path: Path, capsys: Captured) -> None:
    trace = tmp_path / "dma.csv"
    trace.write_text(BPFTRACE)
    assert main(["dma", str(trace), "--guest", "model:6.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["allocations"], found["frees"], found["unknown_frees"]) == (1, 1, 0)
    page = Path(__file__).parents[2] / "docs" / "dma.md"
    assert f'printf("{BPFTRACE.splitlines()[0]}' in page.read_text()


def test_the_old_name_of_the_page_still_works(tmp_path: Path) -> None:
    trace = tmp_path / "dma.csv"
    trace.write_text(BPFTRACE)
    for option in ("--html", "--report"):
        page = tmp_path / f"{option}.html"
        assert main(["dma", str(trace), "--guest", "model:6.1", option, str(page)]) == 0
        assert page.stat().st_size > 1000
