# SPDX-License-Identifier: GPL-2.0-or-later
"""perf script, trace-cmd, kprobes and CSV give the events that the ftrace text gives."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import NAMES, trace_path

from guestemu.abi.errors import InputError
from guestemu.dma.csv_trace import CsvReader
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.source import open_trace, reader_of
from guestemu.dma.trace import TraceReader, TraceReport

LINE = re.compile(r"\s*(\S+)-(\d+) +\[(\d+)\] \S+ +(\d+\.\d+): (.*)")
PROBE_CALL = (
    '   modprobe-7   [001] .....     4.000001: ga: (dma_alloc_attrs+0x0/0x90) dev="0000:00:06.0" '
    "size=9000 gfp=0xcc0 attrs=0x0\n"
)
PROBE_RETURN = (
    "   modprobe-7   [000] .....     4.000002: gr: (nvme_probe+0x1/0x2 <- dma_alloc_attrs) "
    "addr=0xffff888001234000\n"
)
PROBE_FREE = (
    '   rmmod-9      [001] .....     5.000000: gf: (dma_free_attrs+0x0/0x90) dev="0000:00:06.0" '
    "size=9000 addr=0xffff888001234000 attrs=0x0\n"
)


def read(text: str) -> tuple[list[Event], TraceReport]:
    reader = reader_of(io.BufferedReader(io.BytesIO(text.encode())), "trace")
    return list(reader), reader.report()


def ftrace(name: str) -> list[Event]:
    with open_trace(trace_path(name)) as reader:
        return list(reader)


def without_line(events: list[Event]) -> list[Event]:
    return [msgspec.structs.replace(event, line=0) for event in events]


def rewritten(name: str, form: str) -> Iterator[str]:
    """A recorded trace as another recorder prints it."""
    yield from ("cpus=2\n",) if form == "trace-cmd" else ()
    for text in trace_path(name).read_text().splitlines():
        found = LINE.match(text)
        if found is None:
            yield f"{text}\n" if text.startswith("# PCI") else ""
            continue
        task, pid, cpu, time, body = found.groups()
        if form == "trace-cmd":
            event, _, rest = body.partition(": ")
            event = "print" if event == "tracing_mark_write" else event
            rest = rest if event != "print" else f"tracing_mark_write: {rest}"
            yield f"{task:>16}-{pid:<5} [{cpu}]  {time}: {event + ':':<20} {rest}\n"
        else:
            system = "ftrace:print: " if body.startswith("tracing_mark") else "dma:"
            yield f"{task:>16} {pid:>7} [{cpu}] {time}: {system}{body}\n"
            yield "\tffffffff812345d0 dma_alloc_attrs+0x10 ([kernel.kallsyms])\n\n"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["trace-cmd", "perf"])
def test_other_recorders_tell_the_same(name: str, form: str) -> None:
    events, report = read("".join(rewritten(name, form)))
    assert without_line(events) == without_line(ftrace(name))
    assert report.garbage == 0


def test_perf_without_cpu_and_with_a_name_of_two_words() -> None:
    line = (
        "CPU 1/KVM  31/32   4.729769: dma:dma_free: 0000:00:06.0 dir=NONE dma_addr=0x1000 "
        "size=1 virt_addr=0xffff888000001000 attrs=\n"
    )
    events, _ = read(line)
    assert events == [Free(1, 4_729_769_000, 0, "CPU 1/KVM", "0000:00:06.0", "", 0x1000, 1)]


def test_a_probed_allocation_counts_when_it_returns() -> None:
    other = PROBE_CALL.replace("-7 ", "-8 ").replace("9000", "64")
    text = "# PCI 0000:00:06.0 nvme\n" + PROBE_CALL + other + PROBE_RETURN + PROBE_FREE
    events, report = read(text)
    address = 0xFFFF_8880_0123_4000
    hexed = frozenset({"0x0"})
    device = ("0000:00:06.0", "nvme", address, 9000)
    assert events == [
        Alloc(4, 4_000_002_000, 0, "modprobe", *device, frozenset({"0xcc0"}), hexed),
        Free(5, 5_000_000_000, 1, "rmmod", *device, hexed),
    ]
    first = events[0]
    assert isinstance(first, Alloc)
    assert first.is_blocking
    assert (report.garbage, report.lost_events) == (0, 1)


def test_nested_probes_of_one_task_return_innermost_first() -> None:
    text = PROBE_CALL + PROBE_CALL.replace("9000", "64").replace("0xcc0", "0xa20")
    text += PROBE_RETURN + PROBE_RETURN.replace("1234", "5678")
    events, _ = read(text)
    assert [(event.size, event.is_blocking) for event in events if isinstance(event, Alloc)] == [
        (64, False),
        (9000, True),
    ]


def test_perf_probe_without_symbols_is_known_by_its_name() -> None:
    call = (
        "modprobe 7 [001] 4.000001: probe:dma_alloc_attrs: (ffffffff8112) "
        'dev="d" size=1 gfp=0xcc0\n'
    )
    back = (
        "modprobe 7 [001] 4.1: probe:dma_alloc_attrs__return: (ffffffff81 <- ffffffff82) addr=0\n"
    )
    events, _ = read(call + back)
    assert [(event.size, event.has_failed) for event in events if isinstance(event, Alloc)] == [
        (1, True)
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (PROBE_RETURN, "a return of dma_alloc_attrs without its call"),
        (PROBE_CALL.replace("gfp=0xcc0", ""), "a call of dma_alloc_attrs without gfp="),
        (PROBE_CALL.replace('"0000:00:06.0"', "(fault)"), "a probe without dev="),
        (PROBE_FREE.replace("size=9000", "size=x"), "a probe without a number in size="),
    ],
)
def test_an_unusable_probe_is_told_by_number(line: str, reason: str) -> None:
    events, report = read(PROBE_FREE + line)
    assert len(events) == 1
    assert [garbage.line for garbage in report.garbage_lines] == [2]
    assert report.garbage_lines[0].reason.startswith(reason)


def as_csv(events: list[Event]) -> str:
    rows = ["size,address,device,event,time_ns,cpu,task,driver,flags,attrs"]
    for event in events:
        tail = f"{event.time_ns},{event.cpu},{event.task}"
        if isinstance(event, Mark):
            rows.append(f"0,0,{event.name},mark,{tail},,,")
            continue
        kind, flags = "free", ""
        if isinstance(event, Alloc):
            kind, flags = "alloc", "|".join(event.gfp)
        head = f"{event.size},0x{event.dma_addr:x},{event.device},{kind},{tail}"
        rows.append(f"{head},{event.driver},{flags},{'|'.join(event.attrs)}")
    return "\n".join(rows)


@pytest.mark.parametrize("name", NAMES)
def test_csv_tells_the_same(name: str) -> None:
    events = ftrace(name)
    seen, report = read(as_csv(events))
    assert without_line(seen) == without_line(events)
    assert report.garbage == 0
    assert report.dma_events == sum(not isinstance(event, Mark) for event in events)


def test_csv_tells_of_wrong_rows_by_number() -> None:
    text = (
        "event,device,address,size\nalloc,a,0x1000,1\nalloc,a,x,1\n\nlose,a,1,1\nfree,a\n"
        'free,"a,b",4096,-1\nfree,a,4096,1\n'
    )
    events, report = read(text)
    assert [event.line for event in events] == [2, 8]
    assert [(line.line, line.reason) for line in report.garbage_lines] == [
        (3, "address is not a number"),
        (5, "event is alloc, free or mark"),
        (6, "2 fields instead of 4"),
        (7, "size does not fit into 64 bits"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event,address\n", "there must be event, device, address, size"),
        ("event,address,device,size,colour\n", "colour"),
        ("event,device,address,size\n", "no alloc or free row in 1 lines"),
    ],
)
def test_csv_that_cannot_be_used_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(text)


@given(st.binary(max_size=300))
def test_no_bytes_break_a_reader(data: bytes) -> None:
    for reader in (
        CsvReader(io.BytesIO(b"event,device,address,size\nfree,a,1,1\n" + data)),
        TraceReader(io.BytesIO(PROBE_FREE.encode() + data)),
    ):
        assert len(list(reader)) >= 1


def test_standard_input_is_called_a_dash(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from pathlib import Path\nfrom guestemu.dma.source import open_trace\n"
        "with open_trace(Path('-')) as reader:\n    print(len(list(reader)), reader.bytes_read)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=PROBE_FREE, text=True, capture_output=True, check=True
    )
    assert done.stdout == f"1 {len(PROBE_FREE)}\n"
