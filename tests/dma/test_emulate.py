# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces on an emulated guest: what the machine did against the text of the trace."""

from __future__ import annotations

import pytest
from emulated_guest import dma_testbed, remove_vmmcall
from recorded import NAMES, Line, dma_lines, trace_path

from guestemu.abi.addresses import Gfn, Gva
from guestemu.checks.base import Violation
from guestemu.dma.emulate import KEPT_VIOLATIONS, Emulation, ViolationLog
from guestemu.dma.events import Alloc, Event, Free
from guestemu.dma.patterns import parse_patterns, pattern_events
from guestemu.dma.report import DmaReport
from guestemu.dma.source import open_trace
from guestemu.guest.dma.emulated import TrackedAllocator
from guestemu.guest.dma.gfp import GFP_ATOMIC, GFP_KERNEL
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed

ATOMIC = {"GFP_ATOMIC", "GFP_NOWAIT"}


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return dma_testbed()


def emulate(testbed: Testbed, events: list[Event]) -> DmaReport:
    emulation = Emulation(testbed)
    for event in events:
        emulation.step(event)
    return emulation.report()


def emulate_trace(testbed: Testbed, name: str) -> DmaReport:
    emulation = Emulation(testbed)
    with open_trace(trace_path(name)) as reader:
        for event in reader:
            emulation.step(event)
        return emulation.report(reader.report())


def emulate_pattern(testbed: Testbed, text: str) -> DmaReport:
    return emulate(testbed, list(pattern_events(parse_patterns(text))))


def pfn_up(size: int) -> int:
    return -(-size // 4096)


def peak(lines: list[Line]) -> int:
    """The most pages that are allocated at once."""
    live: dict[int, int] = {}
    most = 0
    for line in lines:
        if line.verb == "alloc":
            live[line.address] = pfn_up(line.size)
        else:
            live.pop(line.address, None)
        most = max(most, sum(live.values()))
    return most


def leaves(size: int) -> int:
    """Hypercalls for a buffer: one per leaf (notify_range_enc_status_changed, Linux 6.1), and the
    allocator's blocks of 2 MiB and more cover whole 2 MiB leaves."""
    return pfn_up(size) // 512 + pfn_up(size) % 512


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_a_trace_follow_from_its_lines(testbed: Testbed, name: str) -> None:
    report = emulate_trace(testbed, name)
    lines = dma_lines(name)
    allocs = [line for line in lines if line.verb == "alloc"]
    frees = [line for line in lines if line.verb == "free"]
    assert report.allocations == len(allocs)
    assert report.frees == len(frees)
    assert report.unknown_frees == 0
    assert report.pages_requested == sum(pfn_up(line.size) for line in allocs)
    assert report.pages_released == sum(pfn_up(line.size) for line in frees)
    assert report.peak_live_pages == peak(lines)
    assert report.live_at_end == len(allocs) - len(frees)


@pytest.mark.parametrize("name", NAMES)
def test_the_machine_converts_what_may_sleep(testbed: Testbed, name: str) -> None:
    report = emulate_trace(testbed, name)
    lines = dma_lines(name)
    pool = {line.address for line in lines if line.flags in ATOMIC}
    converted = [line for line in lines if line.address not in pool]
    decrypted = [line.size for line in converted if line.verb == "alloc"]
    encrypted = [line.size for line in converted if line.verb == "free"]
    assert report.pool_hits == sum(line.flags in ATOMIC for line in lines) > 0
    assert report.pages_decrypted == sum(map(pfn_up, decrypted))
    assert report.pages_encrypted == sum(map(pfn_up, encrypted))
    assert report.hypercalls == sum(map(leaves, decrypted + encrypted))
    assert report.peak_shared_pages == peak(converted)
    assert report.violations == ()
    assert report.is_clean


def test_the_host_knows_every_shared_page_of_the_arena(testbed: Testbed) -> None:
    report = emulate_trace(testbed, "churn")
    arena = testbed.guest.dma_frames
    host = testbed.host.private_map()[arena.start : arena.stop]
    assert host == testbed.guest.leaf_map.private[arena.start : arena.stop]
    assert report.pools is not None
    assert report.pages_decrypted is not None
    assert report.pages_encrypted is not None
    shared = report.pages_decrypted - report.pages_encrypted + report.pools.pages_decrypted
    assert len(host) - host.count() == shared


@pytest.mark.parametrize("name", NAMES)
def test_a_guest_that_tells_the_host_nothing_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_vmmcall(monkeypatch)
    report = emulate_trace(dma_testbed(), name)
    healthy = [line for line in dma_lines(name) if line.flags and line.flags not in ATOMIC]
    assert report.hypercalls == 0
    assert report.pages_decrypted == sum(pfn_up(line.size) for line in healthy)
    assert not report.is_ok
    assert report.violations is not None
    blamed = {violation.line for violation in report.violations if violation.check == "status"}
    with open_trace(trace_path(name)) as reader:
        expected = {e.line for e in reader if isinstance(e, Alloc) and e.is_blocking}
    assert expected <= blamed
    assert "is private, expected shared" in report.violations[0].message


def alloc(address: int, size: int, gfp: frozenset[str] = GFP_KERNEL, line: int = 1) -> Alloc:
    return Alloc(line, line, 0, "t", "dev", "", address, size, gfp)


def test_a_buffer_is_cleared_through_its_shared_mapping(testbed: Testbed) -> None:
    emulate(testbed, [alloc(0x100000, 5 * 4096)])
    shared = ~testbed.guest.leaf_map.private
    for gfn in (shared.index(1, testbed.guest.dma_frames.start + 64) + page for page in range(5)):
        gva = Gva(testbed.guest.direct_map + gfn * 4096 + 4088)
        assert testbed.guest.load(gva).value == 0


def test_atomic_pools_are_counted_apart(testbed: Testbed) -> None:
    report = emulate_pattern(testbed, "dma-pool:atomic=1,block=4096,blocks=200")
    assert report.pool_hits == 200
    assert report.pages_decrypted == report.hypercalls == report.peak_shared_pages == 0
    assert report.pools is not None
    assert report.pools.pages_decrypted == report.pools.hypercalls > 200
    assert report.requested is not None
    assert report.requested.pool_pages_decrypted == report.pools.pages_decrypted


def test_unbinding_gives_every_page_back(testbed: Testbed) -> None:
    report = emulate_pattern(testbed, "nvme:queues=4,scenario=unbind+e1000:scenario=unbind")
    # admin queue 1+1, doorbells 2, per I/O queue 16 KiB and 64 KiB; two rings of a page; PRP pool
    assert report.pages_decrypted == report.pages_encrypted == 4 + 4 * (4 + 16) + 2
    assert report.pool_hits == 1
    assert report.live_at_end == 0


@pytest.mark.parametrize(
    ("guest", "pages", "is_told"),
    [("snippet:5.10", 4, False), ("snippet:5.17", 3, True), ("snippet:6.12", 3, True)],
)
def test_generations_convert_and_tell_as_they_do(guest: str, pages: int, is_told: bool) -> None:
    """Three pages: 5.10 converts the whole order (B5) and notifies nobody (A10)."""
    report = emulate(dma_testbed(guest), [alloc(0x100000, 3 * 4096)])
    assert report.pages_decrypted == pages
    assert report.hypercalls == (pages if is_told else 0)
    assert report.is_ok == is_told


@pytest.mark.parametrize("size", [0, 1 << 23, (1 << 31) + 1, (1 << 64) - 1, 10**20 - 1])
def test_absurd_sizes_are_no_memory(testbed: Testbed, size: int) -> None:
    report = emulate(testbed, [alloc(0, size), alloc(0x1000, size, GFP_ATOMIC, 2)])
    assert report.pages_decrypted == 0
    assert report.pool_hits == 0
    assert report.anomaly_counts["no memory in the guest"] == 2
    assert report.is_ok
    assert not report.is_clean


def test_a_run_depends_on_nothing_before_it(testbed: Testbed) -> None:
    first = emulate_trace(testbed, "io")
    emulate_trace(testbed, "churn")
    assert emulate_trace(testbed, "io") == first


def test_an_endless_guest_is_a_violation() -> None:
    testbed = build_testbed(Header(memory=64, budget=5))
    report = emulate(testbed, [alloc(0x1000, 4096), Free(2, 2, 0, "t", "dev", "", 0x1000, 4096)])
    assert report.violations is not None
    assert {violation.check for violation in report.violations} == {"progress"}
    assert report.requested is not None
    assert report.requested.conversion_failures == 1


def test_an_oops_of_the_memset_is_a_violation(testbed: Testbed) -> None:
    emulation = Emulation(testbed)
    pool = testbed.guest.leaf_map.private.index(0, testbed.guest.dma_frames.start)
    gva = Gva(testbed.guest.direct_map + pool * 4096)
    assert testbed.guest.edit_entry(gva, clear_all=False)
    emulation.step(alloc(0x1000, 4096, GFP_ATOMIC, line=7))
    violations = emulation.counts().violations
    assert [(violation.check, violation.line) for violation in violations] == [("progress", 7)]
    assert "memset of 4096 bytes" in violations[0].message
    assert "GuestOops" in violations[0].message


def test_convert_is_judged_by_the_checks(testbed: Testbed) -> None:
    testbed.reset()
    gfn = Gfn(testbed.guest.dma_frames.start)
    result, violations = testbed.convert(3, gfn, 2, private=False)
    assert (result.outcome.value, violations) == (0, ())
    assert [record.args[:2] for record in result.exits] == [(gfn << 12, 1), (gfn + 1 << 12, 1)]
    assert [flip.changed for flip in result.flips] == [1, 1]
    free = ~testbed.guest.leaf_map.private
    _, violations = testbed.convert(4, gfn, 1, private=True, free=free)
    found: list[Violation] = list(violations)
    assert [(violation.check, violation.op) for violation in found] == [("free-pages", 4)] * 2


def test_the_free_map_follows_the_allocator(testbed: Testbed) -> None:
    memory = TrackedAllocator(testbed.guest)
    block = memory.allocate(3)
    assert block is not None
    taken = ~memory.free_frames
    assert taken.count(1, block.gfn, block.gfn + 8) == 8
    memory.free(block.gfn)
    memory.free(block.gfn)
    expected = {f for b in memory.free_blocks() for f in range(b.gfn, b.gfn + b.pages)}
    assert set(memory.free_frames.search(1)) == expected == set(testbed.guest.dma_frames)


def test_the_log_keeps_the_first_violations_and_no_repetition() -> None:
    log = ViolationLog()
    for number in range(KEPT_VIOLATIONS + 5):
        log.line = number
        log.add("status", f"frame {number}")
        log.add("free-pages", "one frame")
        log.add("results", "the same again")
    assert log.count == 2 * (KEPT_VIOLATIONS + 5) + 1
    assert len(log.kept) == KEPT_VIOLATIONS
    assert [v.check for v in log.kept].count("free-pages") == 1
