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


ALLOC = (
    "dir=BIDIRECTIONAL dma_addr=1000 size=8192 virt_addr=ffff888003ddc000 flags=GFP_KERNEL attrs="
)
FTRACE = """          modprobe-101 [000] ..... 1.000001: dma_alloc: 0000:00:06.0 ALLOC
          modprobe-101 [000] ..... 1.000002: <stack trace>
 => trace_event_raw_event_dma_alloc
 => dma_alloc_attrs
 => nvme_alloc_queue
 => nvme_reset_work
"""
PERF = """modprobe   101 [000]     1.000001: dma:dma_alloc: 0000:00:06.0 ALLOC
        ffffffff81123456 dma_alloc_attrs+0x10 ([kernel.kallsyms])
        ffffffffc0123456 nvme_alloc_queue+0x55 ([nvme])
        ffffffffc0123499 nvme_reset_work+0x21 ([nvme])

"""


@pytest.mark.parametrize("text", [FTRACE, PERF], ids=["ftrace", "perf"])
def test_the_drivers_call_site_is_named(text: str, tmp_path: Path, capsys: Captured) -> None:
    trace = tmp_path / "x.trace"
    trace.write_text(text.replace("ALLOC", ALLOC))
    assert main(["dma", str(trace), "--guest", "model:6.1", "--json"]) == 0
    source = json.loads(capsys.readouterr().out)["input"]
    assert source["call_sites"] == [{"site": "nvme_alloc_queue", "allocations": 1, "bytes": 8192}]
    assert source["garbage"] == 0
    assert main(["dma", str(trace), "--guest", "model:6.1"]) == 0
    assert "nvme_alloc_queue" in capsys.readouterr().out
