# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of `guestemu dma`, for a terminal and as a page; plots and the longest tables are on
the page alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from guestemu.abi.names import plural
from guestemu.dma.account import AllocationTally
from guestemu.dma.analysis import Analysis
from guestemu.dma.charts import FEW_CELLS, address_map
from guestemu.dma.cost import Cost
from guestemu.dma.migration import Migration
from guestemu.dma.policy_figures import PolicyFigures
from guestemu.dma.report import DmaReport, WorkloadCounts
from guestemu.dma.sharing import MapCell
from guestemu.report.charts import Band, Lane, bar_chart, lane_chart, step_chart
from guestemu.report.document import Bullets, Chapter, Content, Document, Grid, Paragraph, Svg

SHOWN_ROWS: Final = 40
SHOWN_ANOMALIES: Final = 10
SHOWN_GARBAGE: Final = 5
SHOWN_PASSES: Final = 50
SHOWN_LANES: Final = 16

_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns"))
_COST_COLUMNS: Final = (
    ("conversions", "conversions"),
    ("pages", "pages_converted"),
    ("hypercalls", "hypercalls"),
    ("of 2 MiB", "calls_2m"),
    ("splits", "splits"),
    ("TLB pages", "tlb_pages"),
    ("TLB whole", "tlb_flushes"),
)
_TALLY_COLUMNS: Final = (
    ("allocs", "allocations"),
    ("frees", "frees"),
    ("pages", "pages_requested"),
    ("released", "pages_released"),
    ("peak", "peak_live_pages"),
    ("at end", "live_pages_at_end"),
)
_NO_DRIVER: Final = "(unknown)"


def dma_document(report: DmaReport, title: str, cells: Sequence[MapCell] = ()) -> Document:
    """The report. `title` names trace and guest, `cells` are the address map of the run."""
    return Document(
        title,
        (
            Chapter("", (Paragraph(_lead(report)),)),
            *_source(report),
            *_pictures(report, cells),
            Chapter("DMA allocations", (_totals(report),)),
            *_memory(report),
            *_users(report),
            *_what_if(report),
            *_problems(report),
        ),
    )


def _source(report: DmaReport) -> Iterator[Chapter]:
    """Where the events come from."""
    if report.workload is not None:
        yield Chapter("Workload", tuple(_workload(report.workload)))
    if report.input is not None:
        yield Chapter("Trace", tuple(_input(report)))


def _pictures(report: DmaReport, cells: Sequence[MapCell]) -> Iterator[Chapter]:
    """When, by whom and where pages were shared; the tables below have the same figures."""
    analysis = report.analysis
    if analysis is None:
        return
    yield Chapter("Shared pages over time", _over_time(report, analysis), is_page_only=True)
    yield Chapter("Drivers over time", _lanes(report, analysis), is_page_only=True)
    if cells:
        yield Chapter("Address map", _map(cells), is_page_only=True)


def _memory(report: DmaReport) -> Iterator[Chapter]:
    """For how long buffers lived, and where pages are shared at the end."""
    analysis = report.analysis
    yield Chapter("Lifetimes of freed buffers", (_lifetimes(report),))
    if analysis is not None:
        bars = Svg("Lifetimes", _lifetime_bars(report))
        yield Chapter("Freed buffers by lifetime", (bars,), is_page_only=True)
        yield Chapter("Where shared pages lie", _places(analysis))


def _users(report: DmaReport) -> Iterator[Chapter]:
    """Devices, drivers, phases and call sites, with what they cost."""
    analysis = report.analysis
    devices = sorted(report.by_device.items(), key=lambda item: (-item[1].pages_requested, item[0]))
    yield Chapter("Devices", _tallies("device", devices, has_driver=True))
    if analysis is not None:
        yield Chapter("Hypercalls by device", _by_device(report, analysis), is_page_only=True)
        yield Chapter("Drivers", _drivers(analysis))
    if report.by_phase:
        yield Chapter("Phases", _tallies("phase", list(report.by_phase.items())))
    if analysis is not None:
        costs = _costs("phase", analysis.by_phase.items())
        yield Chapter("Conversions by phase", costs, is_page_only=True)
    if report.input is not None and report.input.call_sites:
        yield Chapter("Call sites", _call_sites(report))
    if report.leaks:
        yield Chapter("Never freed", _leaks(report), is_page_only=True)


def _what_if(report: DmaReport) -> Iterator[Chapter]:
    """Other policies, and a migration during the run."""
    if report.policies:
        yield Chapter("Policies compared", (_policies(report.policies),))
    if report.migrations:
        yield Chapter("Migration over the run", _migrations(report.migrations))
        passes = tuple(_passes(report.migrations, _start(report.analysis)))
        yield Chapter("Passes of the migration", passes, is_page_only=True)


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


def human_pages(pages: int | None) -> str:
    """Pages with their size in KiB or MiB; "-" for None."""
    if pages is None:
        return "-"
    kib = pages * 4
    return f"{pages} ({kib} KiB)" if kib < 1024 else f"{pages} ({kib / 1024:.1f} MiB)"


def _start(analysis: Analysis | None) -> int:
    """The time of the first bucket: where plots begin."""
    return analysis.shared.buckets[0].time_ns if analysis and analysis.shared.buckets else 0


def _lead(report: DmaReport) -> str:
    """The run in two or three sentences."""
    devices = plural(len(report.by_device), "device")
    words = [f"{plural(report.allocations, 'buffer')} of {devices} were replayed."]
    analysis = report.analysis
    if analysis is not None:
        words.append(
            f"At most {plural(analysis.shared.peak, 'page')} were shared with the host at once, "
            f"{analysis.shared.at_end:,} at the end."
            + (f" That took {plural(report.hypercalls, 'hypercall')}." if report.hypercalls else "")
        )
        lanes = {name: one.peak for name, one in analysis.shared_by_driver.items() if one.peak}
        if lanes:
            most = max(lanes, key=lanes.__getitem__)
            words.append(
                f"The driver that shared most is {most or _NO_DRIVER}: "
                f"{plural(lanes[most], 'page')}."
            )
    wrong = [
        plural(count, name)
        for count, name in (
            (report.violation_count or 0, "violation"),
            (sum(report.anomaly_counts.values()), "anomaly/anomalies"),
        )
        if count
    ]
    words.append(f"{' and '.join(wrong)}: see below." if wrong else "No check failed.")
    return " ".join(words)


def _workload(workload: WorkloadCounts) -> Iterator[Content]:
    yield Paragraph(
        f"{workload.kernel}, {workload.sev}: {workload.accesses} accesses of devices, "
        f"{workload.broken} broke a rule"
    )
    same = "the same" if workload.agrees else "NOT the same"
    events = ", ".join(f"{name} {count}" for name, count in workload.events.items())
    yield Paragraph(f"events of the kernel: {events}; in its trace buffer {same}")
    title = "Conversions of the real run"
    yield Grid(("for", "pages"), tuple(workload.conversions.items()), title)
    yield Bullets(tuple(f"{command} = {value}" for command, value in workload.results))


def _input(report: DmaReport) -> Iterator[Content]:
    source = report.input
    if source is None:
        return
    yield Paragraph(f"{source.name}: {source.lines} lines, {human_time(report.duration_ns)}")
    if source.ignored:
        names = ", ".join(f"{name} {count}" for name, count in sorted(source.ignored.items())[:8])
        yield Paragraph(f"events without a coherent buffer: {names}")
    if source.garbage:
        yield Paragraph(f"{source.garbage} lines could not be read", "yellow")
        yield Bullets(
            tuple(
                f"line {line.line}: {line.reason}: {line.text}"
                for line in source.garbage_lines[:SHOWN_GARBAGE]
            )
        )
        yield from _more(source.garbage, SHOWN_GARBAGE)
    if source.lost_events:
        text = f"the recorder lost {source.lost_events} events: allocations or frees are missing"
        yield Paragraph(text, "yellow")


def _more(count: int, shown: int) -> tuple[Content, ...]:
    """How many of `count` are not among the first `shown`."""
    return (Paragraph(f"and {count - shown:,} more"),) if count > shown else ()


def _totals(report: DmaReport) -> Grid:
    rows: list[tuple[str, object]] = [
        ("allocations", report.allocations),
        ("  of them may not sleep (atomic pool)", report.nonblocking),
        ("frees", report.frees),
        ("  of them of unknown buffers", report.unknown_frees),
        ("pages requested", human_pages(report.pages_requested)),
        ("pages released", human_pages(report.pages_released)),
        ("peak live pages", human_pages(report.peak_live_pages)),
        ("buffers live at the end", report.live_at_end),
        ("duration", human_time(report.duration_ns)),
    ]
    if report.failed_allocations:
        rows.append(("failed allocations", report.failed_allocations))
    if report.requested is not None:
        requested = report.requested
        rows += [
            ("replay: pool hits", report.pool_hits),
            ("replay: decryption asked for", human_pages(requested.pages_decrypted)),
            ("replay: encryption asked for", human_pages(requested.pages_encrypted)),
            ("replay: atomic pools decrypted", human_pages(requested.pool_pages_decrypted)),
            ("replay: pages leaked", requested.leaked_pages),
            ("replay: allocations without memory", requested.no_memory + requested.pool_empty),
        ]
    if report.pools is not None:
        who = "model" if report.violations is None else "machine"
        rows += [
            (f"{who}: pages decrypted", human_pages(report.pages_decrypted)),
            (f"{who}: pages encrypted", human_pages(report.pages_encrypted)),
            (f"{who}: peak shared pages", human_pages(report.peak_shared_pages)),
            (f"{who}: hypercalls", report.hypercalls),
            (f"{who}: pages decrypted for atomic pools", human_pages(report.pools.pages_decrypted)),
        ]
        if report.violations is not None:
            rows.append(("machine: violations", report.violation_count))
    if report.analysis is not None:
        shared = report.analysis.shared
        rows += [
            ("peak shared pages, with the atomic pools", shared.peak),
            ("mean shared pages, with the atomic pools", f"{shared.mean:.0f}"),
            ("shared at the end, with the atomic pools", shared.at_end),
        ]
    return Grid(("figure", "value"), tuple(rows), "DMA allocations")


def _over_time(report: DmaReport, analysis: Analysis) -> tuple[Content, ...]:
    start = _start(analysis)
    points = [
        ((bucket.time_ns - start) / 1e9, float(bucket.highest), float(bucket.last))
        for bucket in analysis.shared.buckets
    ]
    drawn = step_chart(
        points, "shared pages", "shared-over-time", bands=_bands(report, analysis, start)
    )
    words = (
        "4 KiB pages of buffers and atomic pools that are shared with the host, by the time since "
        "the trace's first event. The bands above are the phases of the trace"
        f"{' and the passes of the migration' if report.migrations else ''}."
    )
    return Paragraph(words), Svg("Shared pages over time", drawn)


def _bands(report: DmaReport, analysis: Analysis, start: int) -> list[Band]:
    """Phases of the trace and passes of migrations in seconds after `start`."""
    ends = [*(phase.time_ns for phase in analysis.phases[1:]), start + report.duration_ns]
    bands = [
        Band((phase.time_ns - start) / 1e9, (end - start) / 1e9, "phase", phase.name)
        for phase, end in zip(analysis.phases, ends, strict=False)
    ]
    for migration in report.migrations:
        lane = "passes"
        if len(report.migrations) > 1:
            lane = f"passes, {migration.status.value}"
        bands += (
            Band(
                (one.begin_ns - start) / 1e9,
                (one.end_ns - start) / 1e9,
                lane,
                "stop" if one.is_blackout else str(number),
            )
            for number, one in enumerate(migration.passes[:SHOWN_PASSES], start=1)
        )
    return bands


def _lifetimes(report: DmaReport) -> Grid:
    times = report.lifetimes
    row = (
        times.count,
        human_time(times.min_ns),
        human_time(times.median_ns),
        human_time(times.p90_ns),
        human_time(times.max_ns),
        times.still_alive,
    )
    headings = ("freed", "shortest", "median", "90 %", "longest", "never freed")
    return Grid(headings, (row,), "Lifetimes of freed buffers")


def _lifetime_bars(report: DmaReport) -> str:
    bars = [
        (f"from {human_time(low)}", float(count)) for low, count in report.lifetime_buckets.items()
    ]
    return bar_chart(bars, "lifetimes", "buffers")


def _places(analysis: Analysis) -> tuple[Content, ...]:
    spread, total = analysis.fragmentation, analysis.total
    return (
        Bullets(
            (
                f"{spread.shared_pages} pages are shared at the end, in {spread.runs} runs and "
                f"{spread.ranges} ranges of 2 MiB; {spread.ranges_needed} ranges would hold them",
                f"{analysis.splits_unneeded} large pages stay split although each is wholly "
                f"private",
                f"cache lines of {total.cache_bytes >> 10} KiB flushed where the CPU is not "
                f"coherent",
                f"{total.exposed_pages} pages were shared before they were cleared, "
                f"{total.never_cleared_pages} never were",
            )
        ),
    )


def _map(cells: Sequence[MapCell]) -> tuple[Content, ...]:
    cell = f"{cells[0].pages * 4 / 1024:,.4g} MiB of guest memory ({cells[0].pages:,} pages)"
    if sum(1 for one in cells if one.conversions) <= FEW_CELLS:
        how = (
            f"Each row is {cell} that a buffer was in. Blue: so many of them were shared at once; "
            "red: so many still are at the end."
        )
    else:
        how = (
            f"Each cell is {cell}. Blue: some were shared; red: some still are at the end; "
            "darker: more of them at once. Only the rows between the lowest and the highest "
            "address used are drawn."
        )
    return Paragraph(how), Svg("Address map", address_map(cells, "address-map"))


def _tallies(
    what: str, items: Sequence[tuple[str, AllocationTally]], *, has_driver: bool = False
) -> tuple[Content, ...]:
    """One row per name."""
    rows = tuple(
        (
            *((name, tally.driver) if has_driver else (name,)),
            *(getattr(tally, field) for _, field in _TALLY_COLUMNS),
        )
        for name, tally in items[:SHOWN_ROWS]
    )
    names = (what, "driver") if has_driver else (what,)
    headings = (*names, *(heading for heading, _ in _TALLY_COLUMNS))
    return Grid(headings, rows), *_more(len(items), SHOWN_ROWS)


def _cost_cells(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, field) for _, field in _COST_COLUMNS)


def _costs(what: str, costs: Iterable[tuple[str, Cost]]) -> tuple[Content, ...]:
    rows = [(name or _NO_DRIVER, *_cost_cells(cost)) for name, cost in costs]
    headings = (what, *(heading for heading, _ in _COST_COLUMNS))
    return Grid(headings, tuple(rows[:SHOWN_ROWS])), *_more(len(rows), SHOWN_ROWS)


def _by_device(report: DmaReport, analysis: Analysis) -> tuple[Content, ...]:
    def label(name: str) -> str:
        tally = report.by_device.get(name)
        return f"{name} {tally.driver}" if tally is not None and tally.driver else name

    devices = sorted(analysis.by_device.items(), key=lambda item: -item[1].pages_converted)
    costs = [(label(name), cost) for name, cost in devices]
    bars = [(name, float(cost.hypercalls)) for name, cost in costs[:SHOWN_ROWS]]
    drawn = Svg("Hypercalls by device", bar_chart(bars, "device-hypercalls"))
    return drawn, *_costs("device", costs)


def _lanes(report: DmaReport, analysis: Analysis) -> tuple[Content, ...]:
    """Shared pages of each driver's buffers: lanes on the axis of the plot of all."""
    start = _start(analysis)
    lanes = [
        Lane(
            name or _NO_DRIVER,
            tuple(
                ((one.time_ns - start) / 1e9, float(one.highest), float(one.last))
                for one in shared.buckets
            ),
            float(shared.peak),
        )
        for name, shared in analysis.shared_by_driver.items()
        if shared.peak
    ]
    lanes.sort(key=lambda lane: (-lane.highest, lane.name))
    drawn = lane_chart(
        lanes[:SHOWN_LANES],
        "shared pages",
        "driver-lanes",
        (0.0, report.duration_ns / 1e9),
        _bands(report, analysis, start),
    )
    hidden = len(lanes) - SHOWN_LANES
    words = (
        "Shared pages of each driver's buffers. Each lane has its own scale; the number at its "
        "right is its highest value"
    )
    words += f". {hidden} drivers with fewer pages are left out." if hidden > 0 else "."
    return Paragraph(words), Svg("Drivers over time", drawn)


def _drivers(analysis: Analysis) -> tuple[Content, ...]:
    """What each driver's buffers cost, with the highest values of the lanes."""

    def most(name: str) -> int:
        return analysis.shared_by_driver[name].peak if name in analysis.shared_by_driver else 0

    drivers = sorted(analysis.by_driver.items(), key=lambda item: -most(item[0]))
    rows = [
        (
            name or _NO_DRIVER,
            f"{most(name):,}" if name in analysis.shared_by_driver else "",
            *_cost_cells(cost),
        )
        for name, cost in drivers[:SHOWN_ROWS]
    ]
    rows.append(("all", "", *_cost_cells(analysis.total)))
    headings = ("driver", "most shared", *(heading for heading, _ in _COST_COLUMNS))
    return Grid(headings, tuple(rows), "Drivers"), *_more(len(drivers), SHOWN_ROWS)


def _call_sites(report: DmaReport) -> tuple[Content, ...]:
    sites = report.input.call_sites if report.input is not None else ()
    rows = tuple(
        (one.site, one.allocations, f"{one.bytes / 1024:.1f}") for one in sites[:SHOWN_ROWS]
    )
    return Grid(("function", "allocations", "KiB"), rows), *_more(len(sites), SHOWN_ROWS)


def _leaks(report: DmaReport) -> tuple[Content, ...]:
    rows = [(leak.device, leak.phase, leak.buffers, leak.pages, leak.line) for leak in report.leaks]
    rows.sort(key=lambda row: -row[3])
    headings = ("device", "phase", "buffers", "pages", "first line")
    return Grid(headings, tuple(rows[:SHOWN_ROWS])), *_more(len(rows), SHOWN_ROWS)


def _policies(policies: Mapping[str, PolicyFigures]) -> Grid:
    """One row per policy; savings are against the kernel's own way."""
    rows = tuple(
        (
            name,
            figures.conversions,
            figures.conversions_saved,
            figures.hypercalls,
            figures.hypercalls_saved,
            figures.peak_shared_pages,
            f"{figures.mean_shared_pages:.0f}",
            f"{figures.extra_shared_pages:+.0f}",
        )
        for name, figures in policies.items()
    )
    headings = ("policy", "conversions", "saved", "hypercalls", "saved", "peak shared", "mean")
    return Grid((*headings, "mean more"), rows)


def _migrations(migrations: Sequence[Migration]) -> tuple[Content, ...]:
    """One row per migration, and what it did to pages that changed."""
    begun = [done for done in migrations if done.has_begun]
    if not begun:
        return (Paragraph("the migration's start lies behind the end of the trace"),)
    rows = tuple(
        (
            done.status.value,
            len(done.passes),
            done.sent,
            done.resent,
            done.wrong_way,
            done.changed_since_sent,
            done.blackout_pages,
            f"{done.blackout_seconds * 1000:.3g}",
        )
        for done in begun
    )
    headings = ("status", "passes", "sent", "again", "wrong way", "changed", "last pages", "ms")
    return Grid(headings, rows), *(
        Paragraph(
            f"{done.status.value}: {done.changed_since_sent} pages changed their status after they "
            f"were sent last and were never written; {done.wrong_way} were sent the wrong way, "
            f"{done.wrong_page_seconds:.6g} page-seconds until they were sent again."
        )
        for done in begun
    )


def _passes(migrations: Sequence[Migration], start: int) -> Iterator[Content]:
    rows = tuple(
        (
            f"{done.status.value}, {'blackout' if one.is_blackout else f'pass {number}'}",
            human_time(one.begin_ns - start),
            human_time(one.end_ns - one.begin_ns),
            one.sent,
            one.resent,
            one.wrong_way,
            one.converted,
        )
        for done in migrations
        for number, one in enumerate(done.passes[:SHOWN_PASSES], start=1)
    )
    headings = ("status", "at", "for", "sent", "again", "wrong way", "conversions meanwhile")
    yield Grid(headings, rows)


def _problems(report: DmaReport) -> Iterator[Chapter]:
    if report.anomaly_counts:
        counts = ", ".join(f"{kind}: {count}" for kind, count in report.anomaly_counts.items())
        lines = tuple(
            f"line {anomaly.line}: {anomaly.kind.value}: {anomaly.message}"
            for anomaly in report.anomalies[:SHOWN_ANOMALIES]
        )
        more = _more(sum(report.anomaly_counts.values()), SHOWN_ANOMALIES)
        yield Chapter(f"Anomalies ({counts})", (Bullets(lines), *more))
    if report.violations:
        facts = (f" [{one.fact}]" if one.fact else "" for one in report.violations)
        lines = tuple(
            f"line {one.line}: {one.check}: {one.message}{fact}"
            for one, fact in zip(report.violations[:SHOWN_ANOMALIES], facts, strict=False)
        )
        more = _more(report.violation_count or 0, SHOWN_ANOMALIES)
        yield Chapter(f"Violations ({report.violation_count})", (Bullets(lines, "red"), *more))
