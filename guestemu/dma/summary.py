# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of `guestemu dma` for people: tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from guestemu.dma.account import AllocationTally
from guestemu.dma.analysis_text import print_analysis, print_migrations, print_policies, shown
from guestemu.dma.report import DmaReport, WorkloadCounts
from guestemu.dma.trace import CallSite

SHOWN_ROWS: Final = 20
SHOWN_ANOMALIES: Final = 10
SHOWN_GARBAGE: Final = 5
SHOWN_VIOLATIONS: Final = 10

_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns"))


def print_summary(console: Console, report: DmaReport) -> None:
    """Writes the report to `console`. Names from the input are printed as they are, no markup."""
    if report.workload is not None:
        _print_workload(console, report.workload)
    if report.input is not None:
        _print_input(console, report)
    console.print(_totals(report))
    console.print(_tallies("Devices", "device", report.by_device, has_driver=True))
    if report.input is not None and report.input.call_sites:
        console.print(_call_sites(report.input.call_sites))
    if report.by_phase:
        console.print(_tallies("Phases", "phase", report.by_phase, has_driver=False))
    console.print(_lifetimes(report))
    if report.analysis is not None:
        print_analysis(console, report.analysis)
    if report.policies:
        print_policies(console, report.policies)
    if report.migrations:
        print_migrations(console, report.migrations)
    _print_anomalies(console, report)
    _print_violations(console, report)


def _print_workload(console: Console, workload: WorkloadCounts) -> None:
    console.print(
        f"{workload.kernel}, {workload.sev}: {workload.accesses} accesses of devices, "
        f"{workload.broken} broke a rule"
    )
    same = "the same" if workload.agrees else "NOT the same"
    events = ", ".join(f"{name} {count}" for name, count in workload.events.items())
    console.print(f"events of the kernel: {events}; in its trace buffer {same}")
    table = Table(title="Conversions of the real run", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("for")
    table.add_column("pages", justify="right")
    for purpose, pages in workload.conversions.items():
        table.add_row(purpose, str(pages))
    console.print(table)
    for command, value in workload.results:
        console.print(f"{command} = {value}", markup=False)


def _call_sites(sites: Sequence[CallSite]) -> Table:
    table = Table(title="Call sites", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("function")
    table.add_column("allocs", justify="right")
    table.add_column("KiB", justify="right")
    for one in sites[:SHOWN_ROWS]:
        table.add_row(one.site, str(one.allocations), f"{one.bytes / 1024:.1f}")
    return table


def human_time(nanoseconds: int | None) -> str:
    """A time in the largest unit that keeps it at 1 or above, three digits; "-" for None."""
    if nanoseconds is None:
        return "-"
    for scale, unit in _UNITS:
        if nanoseconds >= scale:
            return (
                f"{nanoseconds / scale:.3g} {unit}"
                if nanoseconds < 1000 * scale
                else (f"{nanoseconds // scale} {unit}")
            )
    return "0 s"


def human_pages(pages: int) -> str:
    """Pages with their size in KiB or MiB."""
    kib = pages * 4
    return f"{pages} ({kib} KiB)" if kib < 1024 else f"{pages} ({kib / 1024:.1f} MiB)"


def _pages(pages: int | None) -> str:
    return "-" if pages is None else human_pages(pages)


def _print_input(console: Console, report: DmaReport) -> None:
    source = report.input
    if source is None:
        return
    head = f"{source.name}: {source.lines} lines, {human_time(report.duration_ns)}"
    console.print(shown(head), soft_wrap=True)
    if source.ignored:
        names = ", ".join(f"{name} {count}" for name, count in sorted(source.ignored.items())[:8])
        console.print(shown(f"events without a coherent buffer: {names}"))
    if source.garbage:
        console.print(shown(f"{source.garbage} lines could not be read", style="yellow"))
        for line in source.garbage_lines[:SHOWN_GARBAGE]:
            text = f"  line {line.line}: {line.reason}: {line.text}"
            console.print(shown(text), soft_wrap=True)
        if source.garbage > SHOWN_GARBAGE:
            console.print(f"  and {source.garbage - SHOWN_GARBAGE} more")
    if source.lost_events:
        text = f"the recorder lost {source.lost_events} events: allocations or frees are missing"
        console.print(shown(text, style="yellow"))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _totals(report: DmaReport) -> Table:
    table = _table("DMA allocations")
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    rows: list[tuple[str, str]] = [
        ("allocations", str(report.allocations)),
        ("  of them may not sleep (atomic pool)", str(report.nonblocking)),
        ("frees", str(report.frees)),
        ("  of them of unknown buffers", str(report.unknown_frees)),
        ("pages requested", human_pages(report.pages_requested)),
        ("pages released", human_pages(report.pages_released)),
        ("peak live pages", human_pages(report.peak_live_pages)),
        ("buffers live at the end", str(report.live_at_end)),
    ]
    if report.failed_allocations:
        rows.append(("failed allocations", str(report.failed_allocations)))
    if report.requested is not None:
        requested = report.requested
        rows += [
            ("replay: pool hits", str(report.pool_hits)),
            ("replay: decryption asked for", human_pages(requested.pages_decrypted)),
            ("replay: encryption asked for", human_pages(requested.pages_encrypted)),
            ("replay: atomic pools decrypted", human_pages(requested.pool_pages_decrypted)),
            ("replay: pages leaked", str(requested.leaked_pages)),
            ("replay: allocations without memory", str(requested.no_memory + requested.pool_empty)),
        ]
    if report.pools is not None:
        who = "model" if report.violations is None else "machine"
        rows += [
            (f"{who}: pages decrypted", _pages(report.pages_decrypted)),
            (f"{who}: pages encrypted", _pages(report.pages_encrypted)),
            (f"{who}: peak shared pages", _pages(report.peak_shared_pages)),
            (f"{who}: hypercalls", str(report.hypercalls)),
            (f"{who}: pages decrypted for atomic pools", _pages(report.pools.pages_decrypted)),
        ]
        if report.violations is not None:
            rows.append(("machine: violations", str(report.violation_count)))
    for row in rows:
        table.add_row(*row)
    return table


def _tallies(
    title: str, what: str, tallies: Mapping[str, AllocationTally], has_driver: bool
) -> Table:
    """One row per name; devices by pages, phases in the order they came."""
    items = list(tallies.items())
    if has_driver:
        items.sort(key=lambda item: (-item[1].pages_requested, item[0]))
    hidden = len(items) - SHOWN_ROWS
    caption = f"and {hidden} more" if hidden > 0 else None
    table = _table(title)
    table.caption = caption
    table.add_column(what, min_width=12)
    if has_driver:
        table.add_column("driver", min_width=8)
    for heading in ("allocs", "frees", "pages", "released", "peak", "at end"):
        table.add_column(heading, justify="right")
    for name, tally in items[:SHOWN_ROWS]:
        names = [shown(name), shown(tally.driver)] if has_driver else [shown(name)]
        figures = (
            tally.allocations,
            tally.frees,
            tally.pages_requested,
            tally.pages_released,
            tally.peak_live_pages,
            tally.live_pages_at_end,
        )
        table.add_row(*names, *map(str, figures))
    return table


def _lifetimes(report: DmaReport) -> Table:
    times = report.lifetimes
    table = _table("Lifetimes of freed buffers")
    for heading in ("freed", "shortest", "median", "90 %", "longest", "never freed"):
        table.add_column(heading, justify="right")
    table.add_row(
        str(times.count),
        human_time(times.min_ns),
        human_time(times.median_ns),
        human_time(times.p90_ns),
        human_time(times.max_ns),
        str(times.still_alive),
    )
    return table


def _print_anomalies(console: Console, report: DmaReport) -> None:
    if not report.anomaly_counts:
        return
    counts = ", ".join(f"{kind}: {count}" for kind, count in report.anomaly_counts.items())
    console.print(shown(f"Anomalies ({counts})", style="bold yellow"))
    for anomaly in report.anomalies[:SHOWN_ANOMALIES]:
        text = f"  line {anomaly.line}: {anomaly.kind.value}: {anomaly.message}"
        console.print(shown(text), soft_wrap=True)
    if len(report.anomalies) > SHOWN_ANOMALIES:
        console.print(f"  and {sum(report.anomaly_counts.values()) - SHOWN_ANOMALIES} more")


def _print_violations(console: Console, report: DmaReport) -> None:
    if not report.violations:
        return
    console.print(shown(f"Violations ({report.violation_count})", style="bold red"))
    for violation in report.violations[:SHOWN_VIOLATIONS]:
        fact = f" [{violation.fact}]" if violation.fact else ""
        text = f"  line {violation.line}: {violation.check}: {violation.message}{fact}"
        console.print(shown(text), soft_wrap=True)
    hidden = (report.violation_count or 0) - SHOWN_VIOLATIONS
    if hidden > 0:
        console.print(f"  and {hidden} more")
