# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import io
import json

import msgspec
import pytest
from coherent_guest import RecordingGuest
from recorded import NAMES, dma_lines, trace_path

from guestemu.abi.addresses import Gfn
from guestemu.cli.console import emit_document
from guestemu.dma.anomalies import AnomalyKind
from guestemu.dma.document import dma_document, human_time
from guestemu.dma.events import Alloc, Event, Free
from guestemu.dma.live import Accountant
from guestemu.dma.patterns import parse_patterns, pattern_events
from guestemu.dma.replay import PROGRESS_EVENTS, Replay, replay
from guestemu.dma.report import DmaReport, MachineCounts, TraceViolation, make_report
from guestemu.dma.source import open_trace
from guestemu.guest.dma.coherent import CoherentDma
from guestemu.guest.dma.gfp import GFP_KERNEL
from guestemu.guest.dma.policy import policy_named
from guestemu.guest.dma.zones import ZonedAllocator

FIRST = Gfn(1 << 20)
"""Above 4 GiB: one zone, one atomic pool."""

PROMISED_KEYS = {
    "allocations",
    "frees",
    "unknown_frees",
    "pages_requested",
    "pages_released",
    "peak_live_pages",
    "live_at_end",
    "pool_hits",
    "pages_decrypted",
    "pages_encrypted",
    "hypercalls",
    "peak_shared_pages",
    "violations",
    "by_device",
    "lifetimes",
}


def dma_of(policy: str = "6.12", frames: int = 1 << 14) -> tuple[CoherentDma, RecordingGuest]:
    guest = RecordingGuest()
    memory = ZonedAllocator(FIRST, frames)
    return CoherentDma(guest, memory, policy_named(policy)), guest


def replayed(name: str, policy: str = "6.12") -> tuple[Replay, RecordingGuest]:
    dma, guest = dma_of(policy)
    with open_trace(trace_path(name)) as reader:
        return replay(reader, dma), guest


def pages_of(size: int, policy: str) -> int:
    pages = -(-size // 4096)
    return 1 << (pages - 1).bit_length() if policy == "5.10" else pages


@pytest.mark.parametrize("policy", ["5.10", "6.12"])
@pytest.mark.parametrize("name", NAMES)
def test_a_replay_converts_what_the_text_asks_for(name: str, policy: str) -> None:
    result, guest = replayed(name, policy)
    lines = dma_lines(name)
    atomic = {"GFP_ATOMIC", "GFP_NOWAIT"}
    converted = [line for line in lines if line.verb == "alloc" and line.flags not in atomic]
    assert result.pool_hits == sum(line.flags in atomic for line in lines)
    assert result.pages_decrypted == sum(pages_of(line.size, policy) for line in converted)
    freed = [line for line in lines if line.verb == "free"]
    assert result.pages_encrypted == sum(pages_of(line.size, policy) for line in freed)
    assert result.anomaly_counts == {}
    assert result.no_memory == result.skipped_frees == 0
    shared = result.pages_decrypted + result.pool_pages_decrypted - result.pages_encrypted
    assert len(guest.shared) == shared


def alloc(address: int, size: int = 4096, line: int = 1) -> Alloc:
    return Alloc(line, line, 0, "t", "a", "", address, size, GFP_KERNEL)


def free(address: int, size: int = 4096, line: int = 2) -> Free:
    return Free(line, line, 0, "t", "a", "", address, size)


def test_a_guest_too_small_reports_it_and_goes_on() -> None:
    dma, _ = dma_of(frames=64)
    result = replay([alloc(0, 1 << 20), free(0, 1 << 20), alloc(0x1000, line=3)], dma)
    assert (result.no_memory, result.skipped_frees, result.allocations) == (1, 1, 2)
    assert result.anomaly_counts == {AnomalyKind.NO_MEMORY: 1}
    assert "1048576 bytes: no memory" in result.anomalies[0].message


def test_a_lost_free_is_made_up_for() -> None:
    dma, guest = dma_of()
    result = replay([alloc(0x1000, 8192), alloc(0x2000, line=2), free(0x2000, line=3)], dma)
    assert result.implied_frees == 1
    assert result.pages_encrypted == 3
    assert len(guest.shared) == result.pool_pages_decrypted
    assert result.anomaly_counts == {AnomalyKind.OVERLAP: 1}


def test_unknown_frees_touch_no_page() -> None:
    dma, guest = dma_of()
    result = replay([free(0x1000)], dma)
    assert (result.frees, result.skipped_frees, result.pages_encrypted) == (0, 1, 0)
    assert all(call[0] == "decrypt" for call in guest.log)


@pytest.mark.parametrize(("policy", "leaked", "suspect"), [("6.12", 2, 0), ("5.10", 0, 2)])
def test_failing_conversions_are_anomalies(policy: str, leaked: int, suspect: int) -> None:
    class Failing(RecordingGuest):
        def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
            super().set_memory_encrypted(gfn, pages)
            return -16

    dma = CoherentDma(Failing(), ZonedAllocator(FIRST, 512), policy_named(policy))
    result = replay([alloc(0x1000, 8192), free(0x1000, 8192)], dma)
    assert (result.leaked_pages, result.freed_suspect_pages) == (leaked, suspect)
    assert result.conversion_failures == 1
    assert result.anomaly_counts == {AnomalyKind.CONVERSION_FAILED: 1}


def test_a_pool_that_cannot_be_made_is_an_anomaly() -> None:
    dma, guest = dma_of()
    guest.failing = {"decrypt"}
    result = replay([], dma)
    assert result.anomaly_counts == {AnomalyKind.POOL_GROWTH_FAILED: 1}
    assert result.freed_suspect_pages == result.pool_pages_decrypted == 32


def test_the_atomic_pool_grows_between_events() -> None:
    dma, _ = dma_of()
    result = replay(pattern_events(parse_patterns("dma-pool:atomic=1,block=4096,blocks=500")), dma)
    assert result.pool_hits == 500
    assert result.pool_empty == result.pages_decrypted == 0
    assert 500 < result.pool_pages_decrypted == dma.pools.pages


def test_progress_is_told_in_steps_and_at_the_end() -> None:
    events = list(pattern_events(parse_patterns("e1000:scenario=reset,rounds=500")))
    dma, _ = dma_of()
    told: list[int] = []
    replay(events, dma, progress=told.append)
    assert told == [PROGRESS_EVENTS, 2 * PROGRESS_EVENTS, len(events)]


class IdleGuest:
    """A guest without memory: every conversion succeeds."""

    def set_memory_decrypted(self, _gfn: Gfn, _pages: int, /) -> int:
        return 0

    def set_memory_encrypted(self, _gfn: Gfn, _pages: int, /) -> int:
        return 0

    def memset(self, _gfn: Gfn, _size: int, /) -> None:
        return


def report_of(events: list[Event], machine: MachineCounts | None = None) -> DmaReport:
    accountant = Accountant()
    dma = CoherentDma(IdleGuest(), ZonedAllocator(FIRST, 4096), policy_named("6.12"))
    result = replay(events, dma, accountant)
    return make_report(result.account, accountant.anomalies, None, result, machine)


def test_json_has_the_promised_keys_and_no_machine_figures_without_a_machine() -> None:
    report = json.loads(
        msgspec.json.encode(report_of(list(pattern_events(parse_patterns("nvme")))))
    )
    assert report.keys() >= PROMISED_KEYS
    assert report["pool_hits"] == 1
    for key in ("pages_decrypted", "pages_encrypted", "hypercalls", "violations"):
        assert report[key] is None
    assert report["by_device"]["0000:00:01.0"]["driver"] == "nvme"
    assert report["lifetimes"]["still_alive"] == report["live_at_end"] == 9


def test_json_takes_machine_figures_from_the_observer() -> None:
    machine = MachineCounts(10, 3, 17, 9, (TraceViolation("status", 4, "page 3 differs", "A1"),), 1)
    report = json.loads(msgspec.json.encode(report_of([alloc(0)], machine)))
    assert (report["pages_decrypted"], report["hypercalls"]) == (10, 17)
    assert report["violations"] == [
        {"check": "status", "line": 4, "message": "page 3 differs", "fact": "A1"}
    ]
    assert report["requested"]["pages_decrypted"] == 1


def printed(report: DmaReport) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        emit_document(dma_document(report, "trace on guest"))
    return out.getvalue()


def test_the_summary_names_devices_drivers_phases_and_figures() -> None:
    dma, _ = dma_of()
    accountant = Accountant()
    with open_trace(trace_path("churn")) as reader:
        result = replay(reader, dma, accountant)
        report = make_report(result.account, accountant.anomalies, reader.report(), result)
    text = printed(report)
    rows = [line.split() for line in text.splitlines()]
    assert ["0000:00:05.0", "vmxnet3", "64", "60", "324", "320", "68", "4"] in rows
    assert ["up-1", "16", "0", "69", "0", "716", "716"] in rows
    assert ["92", "150", "us", "1.19", "s", "1.24", "s", "1.27", "s", "337"] in rows
    assert "558 lines, 16.1 s" in text


def test_the_summary_lists_anomalies_and_takes_names_literally() -> None:
    event = Free(7, 0, 0, "t", "[red]dev[/red]", "[bold]", 0x1000, 1)
    text = printed(report_of([event]))
    assert "line 7: unknown free: [red]dev[/red] frees 0x1000" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["[red]dev[/red]", "[bold]", "0", "1", "0", "0", "0", "0"] in rows


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (999, "999 ns"),
        (150000, "150 us"),
        (16100000000, "16.1 s"),
        (123456000000000, "123456 s"),
    ],
)
def test_times_are_readable(nanoseconds: int | None, text: str) -> None:
    assert human_time(nanoseconds) == text
