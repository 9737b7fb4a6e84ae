# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from recorded import NAMES, dma_lines, trace_path

from guestemu.abi.errors import InputError
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.lines import CHUNK_BYTES, MAX_LINE_BYTES, numbered_lines
from guestemu.dma.source import open_trace
from guestemu.dma.trace import KEPT_GARBAGE, TraceReader, TraceReport

TRACE_DAT = b"\x17\x08\x44tracing"
ALLOC = (
    b"    kworker/u8:1-31      [001] .....     4.729769: dma_alloc: 0000:00:06.0 "
    b"dir=BIDIRECTIONAL dma_addr=55692000 size=512 virt_addr=000000002783826a "
    b"flags=GFP_KERNEL|__GFP_ZERO attrs=NO_WARN"
)


def read(data: bytes) -> tuple[list[Event], TraceReport]:
    reader = TraceReader(io.BytesIO(data))
    return list(reader), reader.report()


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_trace_gives_every_event_of_its_text(name: str) -> None:
    with open_trace(trace_path(name)) as reader:
        events = [event for event in reader if not isinstance(event, Mark)]
        report = reader.report()
    seen = [
        (
            "alloc" if isinstance(event, Alloc) else "free",
            event.device,
            event.dma_addr,
            event.size,
            event.time_ns // 1000,
        )
        for event in events
    ]
    assert seen == [
        (line.verb, line.device, line.address, line.size, line.microseconds)
        for line in dma_lines(name)
    ]
    flags = ["|".join(sorted(event.gfp)) for event in events if isinstance(event, Alloc)]
    assert flags == [
        "|".join(sorted(line.flags.split("|"))) for line in dma_lines(name) if line.verb == "alloc"
    ]
    assert report.garbage == 0
    assert report.ignored == {}
    assert report.lost_events == 0


@pytest.mark.parametrize("name", NAMES)
def test_drivers_and_marks_come_from_the_trace(name: str) -> None:
    with open_trace(trace_path(name)) as reader:
        events = list(reader)
        report = reader.report()
    text = trace_path(name).read_text()
    marks = [event.name for event in events if isinstance(event, Mark)]
    assert marks == [line.split("MARK ")[1] for line in text.splitlines() if "MARK" in line]
    assert report.drivers["0000:00:09.0"] == "megaraid_sas"
    assert len(report.drivers) == text.count("# PCI ")
    assert report.hardware[0] == "eth0"
    drivers = {event.driver for event in events if not isinstance(event, Mark)}
    assert "" not in drivers
    assert {"nvme", "ahci", "xhci_hcd", "virtio-pci"} <= drivers


def test_all_fields_of_an_allocation() -> None:
    events, _ = read(b"# PCI 0000:00:06.0 nvme 0x1b36 0x0010\n\n" + ALLOC + b"\r\n")
    assert events == [
        Alloc(
            line=3,
            time_ns=4_729_769_000,
            cpu=1,
            task="kworker/u8:1",
            device="0000:00:06.0",
            driver="nvme",
            dma_addr=0x55692000,
            size=512,
            gfp=frozenset({"GFP_KERNEL", "__GFP_ZERO"}),
            attrs=frozenset({"NO_WARN"}),
        )
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"dma_alloc:", b"dma:dma_alloc:", id="system-prefix"),
        pytest.param(b"dma_alloc: ", b"dma_alloc:            ", id="trace-cmd-padding"),
        pytest.param(b"dir=BIDIRECTIONAL ", b"", id="6.12.0-without-dir"),
        pytest.param(b"dma_addr=55692000", b"dma_addr=0x55692000", id="hex-prefix"),
        pytest.param(b"[001] .....", b"[001]", id="no-irq-info"),
        pytest.param(b"[001]", b"(-------) [001]", id="record-tgid"),
        pytest.param(b"[001]", b"(     31) [001]", id="record-tgid-known"),
        pytest.param(b"4.729769", b"4.729769000", id="nanoseconds"),
        pytest.param(b"4.729769", b"4729769000", id="counter-clock"),
        pytest.param(b"virt_addr=000000002783826a", b"virt_addr=(____ptrval____)", id="early-boot"),
    ],
)
def test_formats_of_other_recorders_give_the_same_event(old: bytes, new: bytes) -> None:
    assert old in ALLOC
    assert read(ALLOC.replace(old, new))[0] == read(ALLOC)[0]


def test_task_names_with_spaces_and_dashes() -> None:
    events, _ = read(ALLOC.replace(b"kworker/u8:1-31", b"Web Content-7 -b-31"))
    assert events[0].task == "Web Content-7 -b"


def test_a_null_pointer_is_a_failed_allocation_or_an_empty_free() -> None:
    null = ALLOC.replace(b"000000002783826a", b"0000000000000000")
    free = null.replace(b"dma_alloc", b"dma_free").replace(b"flags=GFP_KERNEL|__GFP_ZERO ", b"")
    (alloc, freed), _ = read(null + b"\n" + free)
    assert isinstance(alloc, Alloc)
    assert alloc.has_failed
    assert isinstance(freed, Free)
    assert freed.is_null


def test_page_events_are_told_apart() -> None:
    (event,), _ = read(ALLOC.replace(b"dma_alloc", b"dma_alloc_pages"))
    assert isinstance(event, Alloc)
    assert event.via_pages


def test_other_events_are_counted_by_name_and_garbage_by_line() -> None:
    other = (
        b"  <idle>-0  [000] d.h1.  9.000001: dma_map_page: 0000:00:02.0 dir=TO_DEVICE "
        b"dma_addr=1000 size=64 phys_addr=1000 attrs=\n"
        b"  <idle>-0  [000] d.h1.  9.000002: sched:sched_switch: prev=1\n"
        b"  x-1  [000] .....  9.000003: dma_alloc_sgt: 0000:00:02.0 dma_addr=0 size=1\n"
        b"  x-1  [000] .....  9.000004: tracing_mark_write: hello\n"
    )
    _, report = read(other + ALLOC + b"\nnonsense\n" + b"\xff\x1b[31m\n")
    assert report.ignored == {
        "dma_map_page": 1,
        "sched_switch": 1,
        "dma_alloc_sgt": 1,
        "tracing_mark_write": 1,
    }
    assert [(garbage.line, garbage.reason) for garbage in report.garbage_lines] == [
        (6, "not a trace line"),
        (7, "not a trace line"),
    ]
    assert report.garbage_lines[1].text == r"\\xff\x1b[31m"


def test_only_the_first_garbage_lines_are_kept() -> None:
    _, report = read(ALLOC + b"\n" + b"garbage\n" * 5000)
    assert report.garbage == 5000
    assert len(report.garbage_lines) == KEPT_GARBAGE
    assert report.garbage_lines[-1].line == KEPT_GARBAGE + 1


def test_lost_events_are_summed() -> None:
    _, report = read(
        b"# entries-in-buffer/entries-written: 100/140   #P:2\n"
        b"CPU:1 [LOST 7 EVENTS]\nCPU:0 [3 EVENTS DROPPED]\ncpus=2\n" + ALLOC
    )
    assert report.lost_events == 50
    assert report.garbage == 0


def test_marks_of_trace_cmd() -> None:
    events, _ = read(b"sh-9 [000] 1.5: print: tracing_mark_write: MARK two words\n" + ALLOC)
    assert isinstance(events[0], Mark)
    assert events[0].name == "two words"


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"# tracer: nop\n", b"x-1 [000] 1.5: sched_switch: a\n", b"\0" * 70000],
)
def test_a_file_without_dma_events_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"trace: no dma_alloc or dma_free event in \d+ lines"):
        read(data)


def test_a_binary_trace_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(InputError, match="trace-cmd report -i"):
        read(TRACE_DAT + b"6\0" + b"\0" * 100)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"absent\.trace: No such file"),
        open_trace(tmp_path / "absent.trace") as reader,
    ):
        list(reader)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"), open_trace(tmp_path) as reader:
        list(reader)


@pytest.mark.parametrize("field", [b"kworker", b"0000:00:06.0", b"GFP_KERNEL", b"NO_WARN"])
def test_names_of_unbelievable_length_are_garbage(field: bytes) -> None:
    _, report = read(ALLOC + b"\n" + ALLOC.replace(field, field * 1000))
    assert report.garbage == 1


@pytest.mark.parametrize("digits", [20, 5000])
def test_numbers_too_large_for_a_field_are_garbage(digits: int) -> None:
    for field in (b"4.", b"[001", b"dma_addr=", b"size=5"):
        line = ALLOC.replace(field, field + b"9" * digits)
        _, report = read(ALLOC + b"\n" + line)
        assert report.garbage == 1, field


def test_a_line_of_megabytes_is_cut_and_costs_one_line() -> None:
    long = b"x" * (3 * CHUNK_BYTES)
    events, report = read(long + b"\n" + ALLOC)
    assert len(events) == 1
    assert events[0].line == 2
    assert report.garbage_lines[0].reason == f"longer than {MAX_LINE_BYTES} bytes"


class Endless:
    """A file that is one line without end."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def read(self, size: int, /) -> bytes:
        self.bytes_read += size
        if self.bytes_read > 100 * CHUNK_BYTES:
            pytest.fail("waits for the end of the line")
        return b"x" * size


def test_an_endless_line_is_given_out_at_once() -> None:
    source = Endless()
    number, line = next(numbered_lines(source))
    assert number == 1
    assert MAX_LINE_BYTES < len(line) <= source.bytes_read == CHUNK_BYTES


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)))
def test_lines_are_numbered_as_the_file_has_them(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert list(numbered_lines(io.BytesIO(data))) == list(enumerate(expected, start=1))


class Dribble:
    """A pipe that gives one byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._source.read(min(size, 1))


def test_short_reads_change_nothing() -> None:
    data = trace_path("boot").read_bytes()[:20000]
    assert list(TraceReader(Dribble(data))) == list(TraceReader(io.BytesIO(data)))


@given(st.binary(max_size=300), st.integers(0, len(ALLOC)), st.integers(0, 40))
def test_any_bytes_are_read_without_a_traceback(noise: bytes, at: int, cut: int) -> None:
    damaged = ALLOC[:at] + noise + ALLOC[at + cut :]
    assume(not damaged.startswith(TRACE_DAT))
    events, report = read(damaged + b"\n" + ALLOC)
    assert len(events) == report.dma_events + report.marks
    assert report.dma_events >= 1
    assert all(event.line <= report.lines for event in events)
