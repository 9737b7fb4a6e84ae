# SPDX-License-Identifier: GPL-2.0-or-later
"""Parquet tables and Perfetto traces, read back by their own libraries against the run."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conversion_log import Log
from recorded import dma_lines, trace_path

from guestemu.abi.errors import InputError
from guestemu.dma.events import Alloc, Mark
from guestemu.dma.model import ModelRun
from guestemu.dma.observer import Observer
from guestemu.dma.parquet import CONVERSION_COLUMNS, EVENT_COLUMNS, ParquetWriter
from guestemu.dma.perfetto_trace import PerfettoWriter, Track
from guestemu.dma.report import DmaReport
from guestemu.dma.source import open_trace
from guestemu.guest.dma.gfp import GFP_KERNEL

parquet = pytest.importorskip("pyarrow.parquet")
protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


def replayed(*observers: Observer) -> DmaReport:
    run = ModelRun("6.1", 64, observers=observers)
    with open_trace(trace_path("churn")) as reader:
        for event in reader:
            run.step(event)
    return run.report()


def test_parquet_has_a_row_for_each_event_and_conversion(tmp_path: Path) -> None:
    writer, log = ParquetWriter(tmp_path / "out"), Log()
    report = replayed(writer, log)
    writer.close()
    events = parquet.read_table(tmp_path / "out" / "events.parquet")
    conversions = parquet.read_table(tmp_path / "out" / "conversions.parquet")
    assert {field.name: str(field.type) for field in events.schema} == dict(EVENT_COLUMNS)
    assert {field.name: str(field.type) for field in conversions.schema} == dict(CONVERSION_COLUMNS)
    rows = events.to_pylist()
    lines = dma_lines("churn")
    assert [(row["event"], row["dma_addr"], row["size"]) for row in rows] == [
        (line.verb, line.address, line.size) for line in lines
    ]
    assert sum(row["hypercalls"] for row in rows) == report.hypercalls
    assert max(row["shared_pages"] for row in rows) == report.peak_shared_pages
    assert rows[-1]["phase"] == "down-5"
    told = conversions.to_pylist()
    assert [(row["gfn"], row["pages"], row["private"]) for row in told] == [
        (conversion.gfn, conversion.pages, conversion.private) for conversion in log.conversions
    ]
    assert report.pools is not None
    pool_rows = [row for row in told if row["pool"]]
    assert sum(row["changed"] for row in pool_rows) == report.pools.pages_decrypted
    atomic = [row["line"] for row in rows if row["blocking"] is False]
    assert [row["line"] for row in pool_rows if row["line"] is not None] == atomic
    assert pool_rows[0]["line"] is None


def test_parquet_into_one_file_has_the_events(tmp_path: Path) -> None:
    writer = ParquetWriter(tmp_path / "events.parquet")
    report = replayed(writer)
    writer.close()
    table = parquet.read_table(tmp_path / "events.parquet")
    assert table.num_rows == report.allocations + report.frees
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_a_perfetto_trace_tells_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.perfetto-trace"
    writer, log = PerfettoWriter(path, "model:6.1"), Log()
    report = replayed(writer, log)
    writer.close()
    packets = protos.Trace.FromString(path.read_bytes()).packet
    tracks = {
        p.track_descriptor.uuid: p.track_descriptor
        for p in packets
        if p.HasField("track_descriptor")
    }
    assert tracks[Track.GUEST].process.process_name == "model:6.1"
    assert {uuid: track.parent_uuid for uuid, track in tracks.items() if uuid != Track.GUEST} == (
        dict.fromkeys(set(Track) - {Track.GUEST}, Track.GUEST)
    )
    assert tracks[Track.SHARED].HasField("counter")
    events = [(p.timestamp, p.track_event) for p in packets if p.HasField("track_event")]
    times = [time for time, _ in events]
    assert times == sorted(set(times))
    kinds = Counter((event.track_uuid, event.type) for _, event in events)
    kind = protos.TrackEvent
    assert report.pools is not None
    calls = (report.hypercalls or 0) + report.pools.hypercalls
    assert kinds[Track.HYPERCALLS, kind.TYPE_INSTANT] == calls
    for track, count in (
        (Track.VCPU, report.allocations + report.frees),
        (Track.CONVERSIONS, len(log.conversions)),
    ):
        assert kinds[track, kind.TYPE_SLICE_BEGIN] == kinds[track, kind.TYPE_SLICE_END] == count
    with open_trace(trace_path("churn")) as reader:
        assert kinds[Track.MARKS, kind.TYPE_INSTANT] == sum(isinstance(e, Mark) for e in reader)
    depth = Counter[int]()
    for _, event in events:
        depth[event.track_uuid] += {kind.TYPE_SLICE_BEGIN: 1, kind.TYPE_SLICE_END: -1}.get(
            event.type, 0
        )
        assert depth[event.track_uuid] in (0, 1)
    levels = [event.counter_value for _, event in events if event.track_uuid == Track.SHARED]
    assert report.analysis is not None
    assert (max(levels), levels[-1]) == (report.analysis.shared.peak, report.analysis.shared.at_end)


def test_a_trace_processor_counts_the_same(tmp_path: Path) -> None:
    """Perfetto's own reader, where there is one: GUESTEMU_TRACE_PROCESSOR or on PATH."""
    shell = os.environ.get("GUESTEMU_TRACE_PROCESSOR") or shutil.which("trace_processor_shell")
    if not shell:
        pytest.skip("no trace_processor_shell; name one in GUESTEMU_TRACE_PROCESSOR")
    api = pytest.importorskip("perfetto.trace_processor")
    path = tmp_path / "run.perfetto-trace"
    writer, log = PerfettoWriter(path, "model:6.1"), Log()
    report = replayed(writer, log)
    writer.close()
    with api.TraceProcessor(
        trace=str(path), config=api.TraceProcessorConfig(bin_path=shell)
    ) as processor:
        rows = processor.query(
            "select t.name as name, count(*) as n from slice s"
            " join track t on s.track_id = t.id group by t.name"
        )
        counts = {row.name: row.n for row in rows}
        errors = processor.query(
            "select sum(value) as n from stats where severity = 'error' and value > 0"
        )
        assert not [row.n for row in errors if row.n]
    assert report.pools is not None
    assert counts["vCPU 0"] == report.allocations + report.frees
    assert counts["conversions"] == len(log.conversions)
    assert counts["hypercalls"] == (report.hypercalls or 0) + report.pools.hypercalls


def test_times_go_on_where_events_are_too_close(tmp_path: Path) -> None:
    path = tmp_path / "run.perfetto-trace"
    writer = PerfettoWriter(path, "guest")
    run = ModelRun("6.1", 64, observers=(writer,))
    for number, time in ((1, 1000), (2, 1001), (3, 5)):
        head = (number, time, 0, "t", "d", "v")
        run.step(Alloc(*head, number << 24, 100 << 12, GFP_KERNEL))
    writer.close()
    packets = protos.Trace.FromString(path.read_bytes()).packet
    times = [p.timestamp for p in packets if p.HasField("track_event")]
    assert times == sorted(set(times))


def test_files_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"give a directory or a \.parquet file"):
        ParquetWriter(tmp_path / "file")
    with pytest.raises(InputError, match="give a file name"):
        PerfettoWriter(tmp_path, "guest")
