# SPDX-License-Identifier: GPL-2.0-or-later
"""The result of `guestemu dma` as one record: the JSON object that other programs rely on."""

from __future__ import annotations

import msgspec

from guestemu.dma.account import Account, AllocationTally, Leak
from guestemu.dma.analysis import Analysis
from guestemu.dma.anomalies import Anomaly, AnomalyLog
from guestemu.dma.lifetimes import Lifetimes
from guestemu.dma.migration import Migration
from guestemu.dma.policy_figures import PolicyFigures
from guestemu.dma.replay import Replay
from guestemu.dma.trace import CallSite, GarbageLine, TraceReport


class TraceViolation(msgspec.Struct, frozen=True):
    """What a check said: its name, the trace line replayed at that moment (0: before the first),
    one sentence, and the item of the reference that demands it."""

    check: str
    line: int
    message: str
    fact: str = ""


class PoolCounts(msgspec.Struct, frozen=True):
    """What the machine did for the atomic pools, at boot and when they grew: pages whose C-bit
    was cleared, and hypercalls."""

    pages_decrypted: int = 0
    hypercalls: int = 0


class MachineCounts(msgspec.Struct, frozen=True):
    """What an observer of the machine counted during a replay; pages are 4 KiB.

    `pages_decrypted` and `pages_encrypted` changed their C-bit, `hypercalls` exits were made,
    `peak_shared_pages` were shared at once, all for the buffers of the trace; `pools` is apart.
    `violations` are the first ones of `violation_count`; None when nothing was checked (a model).
    """

    pages_decrypted: int
    pages_encrypted: int
    hypercalls: int
    peak_shared_pages: int
    violations: tuple[TraceViolation, ...] | None = ()
    violation_count: int | None = 0
    pools: PoolCounts = PoolCounts()


class InputCounts(msgspec.Struct, frozen=True):
    """What the reader saw of the input besides the events; see `TraceReport`."""

    name: str
    lines: int
    garbage: int
    garbage_lines: tuple[GarbageLine, ...]
    lost_events: int
    ignored: dict[str, int]
    call_sites: tuple[CallSite, ...] = ()


class RequestedCounts(msgspec.Struct, frozen=True):
    """What the replayed DMA code asked of the guest; see `Replay`."""

    pages_decrypted: int
    pages_encrypted: int
    pool_pages_decrypted: int
    no_memory: int
    pool_empty: int
    implied_frees: int
    conversion_failures: int
    leaked_pages: int
    freed_suspect_pages: int
    pages_beyond: int


class WorkloadCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on a real kernel. `events` are its dma:* events by class as they happened,
    `written` those in the text of its trace buffer; `conversions` are pages by what they were
    converted for; `accesses` are those of devices, `broken` the ones that broke a rule; `results`
    those of the commands (negative: an errno)."""

    kernel: str
    sev: str
    events: dict[str, int]
    written: dict[str, int]
    conversions: dict[str, int]
    accesses: int
    broken: int
    results: tuple[tuple[str, int], ...]

    @property
    def agrees(self) -> bool:
        """Whether the text has the events that happened."""
        return self.events == self.written


class DmaReport(msgspec.Struct, frozen=True):
    """Everything `guestemu dma` reports. The field names are the JSON keys.

    `pool_hits` is None without a replay; `pages_decrypted` to `pools` are None when no guest
    converted anything, `violations` when none was checked (a model: an empty `violations` means
    that a machine was watched, and nothing was wrong). `interrupted`: the rest of the input was not
    replayed. `workload` is what the recording kernel did, None for another source.
    """

    allocations: int
    frees: int
    unknown_frees: int
    pages_requested: int
    pages_released: int
    peak_live_pages: int
    live_at_end: int
    live_pages_at_end: int
    pages_lost: int
    failed_allocations: int
    null_frees: int
    nonblocking: int
    duration_ns: int
    pool_hits: int | None
    pages_decrypted: int | None
    pages_encrypted: int | None
    hypercalls: int | None
    peak_shared_pages: int | None
    violations: tuple[TraceViolation, ...] | None
    violation_count: int | None
    pools: PoolCounts | None
    by_device: dict[str, AllocationTally]
    by_phase: dict[str, AllocationTally]
    lifetimes: Lifetimes
    lifetimes_by_device: dict[str, Lifetimes]
    lifetime_buckets: dict[int, int]
    orders_by_device: dict[str, dict[int, int]]
    leaks: tuple[Leak, ...]
    anomaly_counts: dict[str, int]
    anomalies: tuple[Anomaly, ...]
    input: InputCounts | None
    requested: RequestedCounts | None
    analysis: Analysis | None = None
    policies: dict[str, PolicyFigures] | None = None
    migrations: tuple[Migration, ...] = ()
    interrupted: bool = False
    workload: WorkloadCounts | None = None

    @property
    def is_ok(self) -> bool:
        """No check found anything."""
        return not self.violations and (self.workload is None or not self.workload.broken)

    @property
    def is_clean(self) -> bool:
        """Nothing is odd in the input or its replay either: what `--strict` demands."""
        is_read = self.input is None or not (self.input.garbage or self.input.lost_events)
        return self.is_ok and is_read and not self.anomaly_counts


def make_report(
    account: Account,
    anomalies: AnomalyLog,
    trace: TraceReport | None = None,
    replay: Replay | None = None,
    machine: MachineCounts | None = None,
    interrupted: bool = False,
    analysis: Analysis | None = None,
    migrations: tuple[Migration, ...] = (),
) -> DmaReport:
    """Puts together what is known. `trace` is None for a built-in pattern."""
    total = account.total
    return DmaReport(
        allocations=total.allocations,
        frees=total.frees,
        unknown_frees=total.unknown_frees,
        pages_requested=total.pages_requested,
        pages_released=total.pages_released,
        peak_live_pages=total.peak_live_pages,
        live_at_end=total.live_at_end,
        live_pages_at_end=total.live_pages_at_end,
        pages_lost=account.pages_lost,
        failed_allocations=account.failed_allocations,
        null_frees=account.null_frees,
        nonblocking=total.nonblocking,
        duration_ns=account.duration_ns,
        pool_hits=None if replay is None else replay.pool_hits,
        pages_decrypted=None if machine is None else machine.pages_decrypted,
        pages_encrypted=None if machine is None else machine.pages_encrypted,
        hypercalls=None if machine is None else machine.hypercalls,
        peak_shared_pages=None if machine is None else machine.peak_shared_pages,
        violations=None if machine is None else machine.violations,
        violation_count=None if machine is None else machine.violation_count,
        pools=None if machine is None else machine.pools,
        by_device=account.by_device,
        by_phase=account.by_phase,
        lifetimes=account.lifetimes,
        lifetimes_by_device=account.lifetimes_by_device,
        lifetime_buckets=account.lifetime_buckets,
        orders_by_device=account.orders_by_device,
        leaks=account.leaks,
        anomaly_counts={kind.value: count for kind, count in anomalies.counts.items()},
        anomalies=anomalies.kept,
        input=None if trace is None else _input(trace),
        requested=None if replay is None else _requested(replay),
        analysis=analysis,
        migrations=migrations,
        interrupted=interrupted,
    )


def _input(trace: TraceReport) -> InputCounts:
    return InputCounts(
        name=trace.name,
        lines=trace.lines,
        garbage=trace.garbage,
        garbage_lines=trace.garbage_lines,
        lost_events=trace.lost_events,
        ignored=trace.ignored,
        call_sites=trace.call_sites,
    )


def _requested(replay: Replay) -> RequestedCounts:
    return RequestedCounts(
        pages_decrypted=replay.pages_decrypted,
        pages_encrypted=replay.pages_encrypted,
        pool_pages_decrypted=replay.pool_pages_decrypted,
        no_memory=replay.no_memory,
        pool_empty=replay.pool_empty,
        implied_frees=replay.implied_frees,
        conversion_failures=replay.conversion_failures,
        leaked_pages=replay.leaked_pages,
        freed_suspect_pages=replay.freed_suspect_pages,
        pages_beyond=replay.pages_beyond,
    )
