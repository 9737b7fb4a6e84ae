# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of `guestemu dma` as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from guestemu.abi.names import plural
from guestemu.dma.analysis import Analysis
from guestemu.dma.charts import FEW_CELLS, address_map
from guestemu.dma.cost import Cost
from guestemu.dma.migration import Migration
from guestemu.dma.policy_figures import PolicyFigures
from guestemu.dma.report import DmaReport
from guestemu.dma.sharing import MapCell
from guestemu.dma.summary import human_pages, human_time
from guestemu.report.charts import Band, Lane, bar_chart, lane_chart, step_chart
from guestemu.report.page import figure, html_page, section, table

SHOWN_DEVICES: Final = 40
SHOWN_ANOMALIES: Final = 50
SHOWN_PASSES: Final = 50
SHOWN_LANES: Final = 16
_COST_COLUMNS: Final = (
    ("conversions", "conversions"),
    ("pages", "pages_converted"),
    ("hypercalls", "hypercalls"),
    ("of 2 MiB", "calls_2m"),
    ("splits", "splits"),
    ("TLB pages", "tlb_pages"),
    ("TLB whole", "tlb_flushes"),
)


def report_page(
    report: DmaReport,
    title: str,
    cells: Sequence[MapCell] = (),
    policies: Mapping[str, PolicyFigures] | None = None,
) -> str:
    """The page. `title` names trace and guest, `cells` are the address map of the run, `policies` a
    comparison."""
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_lead(report))}</p>", _overview(report)]
    analysis = report.analysis
    if analysis is not None:
        parts += _analysis(report, analysis, cells)
    if policies:
        parts.append(section("Policies compared", _policies(policies)))
    if report.migrations:
        start = analysis.shared.buckets[0].time_ns if analysis and analysis.shared.buckets else 0
        parts.append(section("Migration over the run", _migrations(report.migrations, start)))
    parts.append(section("Anomalies and violations", _problems(report)))
    return html_page(title, parts)


def _lead(report: DmaReport) -> str:
    """The run in two or three sentences."""
    devices = plural(len(report.by_device), "device")
    words = [f"{plural(report.allocations, 'buffer')} of {devices} were replayed."]
    analysis = report.analysis
    if analysis is not None:
        words.append(
            f"At most {plural(analysis.shared.peak, 'page')} were shared with the host at once, "
            f"{analysis.shared.at_end:,} are at the end"
            + (f"; it took {plural(report.hypercalls, 'hypercall')}." if report.hypercalls else ".")
        )
        lanes = {name: one.peak for name, one in analysis.shared_by_driver.items() if one.peak}
        if lanes:
            most = max(lanes, key=lanes.__getitem__)
            words.append(f"The most are of {most or '(unknown)'}: {lanes[most]:,}.")
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


def _overview(report: DmaReport) -> str:
    rows: list[tuple[str, object]] = [
        ("allocations", report.allocations),
        ("frees", report.frees),
        ("pages requested", human_pages(report.pages_requested)),
        ("peak live pages", human_pages(report.peak_live_pages)),
        ("from the atomic pools", report.pool_hits),
        ("duration", human_time(report.duration_ns)),
    ]
    if report.hypercalls is not None:
        rows += [
            ("hypercalls", report.hypercalls),
            ("peak shared pages, buffers of the trace", report.peak_shared_pages),
        ]
    if report.analysis is not None:
        shared = report.analysis.shared
        rows += [
            ("peak shared pages, with the atomic pools", shared.peak),
            ("mean shared pages, with the atomic pools", f"{shared.mean:.0f}"),
            ("shared at the end, with the atomic pools", shared.at_end),
        ]
    return table(("figure", "value"), rows)


def _analysis(report: DmaReport, analysis: Analysis, cells: Sequence[MapCell]) -> list[str]:
    buckets = analysis.shared.buckets
    start = buckets[0].time_ns if buckets else 0
    points = [
        ((bucket.time_ns - start) / 1e9, float(bucket.highest), float(bucket.last))
        for bucket in buckets
    ]
    lifetimes = [
        (f"from {human_time(low)}", float(count)) for low, count in report.lifetime_buckets.items()
    ]
    spread = analysis.fragmentation
    cell = human_pages(cells[0].pages) if cells else "-"
    if sum(1 for one in cells if one.conversions) <= FEW_CELLS:
        how = f"A bar is {cell} of guest memory; blue: was shared, red: still is."
    else:
        how = (
            f"One cell of the map is {cell}; blue: was shared, red: still is; darker: more of it "
            "was at once. Only the rows between the lowest and the highest address used are drawn."
        )
    words = (
        f"<p>{spread.shared_pages} pages are shared at the end, in {spread.runs} runs and "
        f"{spread.ranges} ranges of 2 MiB ({spread.ranges_needed} would hold them); "
        f"{analysis.splits_unneeded} large pages stay split although each is wholly private. "
        f"{how}</p>"
    )
    where = words + (figure("Address map", address_map(cells, "address-map")) if cells else "")
    devices = sorted(analysis.by_device.items(), key=lambda item: -item[1].pages_converted)
    bars = [
        (_device(name, report), float(cost.hypercalls)) for name, cost in devices[:SHOWN_DEVICES]
    ]
    return [
        section(
            "Shared pages over time",
            "<p>Buffers and atomic pools; the phases of the trace and the passes of a migration "
            "lie above, on the same axis.</p>"
            + figure(
                "Shared pages over time",
                step_chart(
                    points,
                    "shared pages",
                    "shared-over-time",
                    bands=_bands(report, analysis, start),
                ),
            ),
        ),
        section(
            "Lifetimes of freed buffers",
            figure("Lifetimes", bar_chart(lifetimes, "lifetimes", "buffers")),
        ),
        section("Address map", where),
        section(
            "Hypercalls by device",
            figure("Hypercalls by device", bar_chart(bars, "device-hypercalls"))
            + _costs("device", [(_device(name, report), cost) for name, cost in devices]),
        ),
        section("Drivers", _drivers(report, analysis, start)),
        section("Phases", _costs("phase", analysis.by_phase.items())),
        section("Call sites", _call_sites(report)),
        section("Never freed", _leaks(report)),
    ]


def _drivers(report: DmaReport, analysis: Analysis, start: int) -> str:
    """Shared pages of each driver's buffers: lanes on the axis of the first plot, and a table with
    the lanes' highest values."""
    lanes = [
        Lane(
            name or "(unknown)",
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
    words = "<p>Pages that a driver's buffers share, each lane on its own scale"
    words += f"; {hidden} drivers with fewer are left out.</p>" if hidden > 0 else ".</p>"
    rows = []
    for name, cost in analysis.by_driver.items():
        lane = analysis.shared_by_driver.get(name)
        figures = [getattr(cost, field) for _, field in _COST_COLUMNS]
        rows.append((name or "(unknown)", "" if lane is None else f"{lane.peak:,}", *figures))
    headings = ("driver", "most shared", *(heading for heading, _ in _COST_COLUMNS))
    rows.sort(key=lambda row: -int(str(row[1]).replace(",", "") or 0))
    listed = table(headings, rows[:SHOWN_DEVICES], "Drivers", is_sortable=True)
    return words + figure("Drivers over time", drawn) + listed


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


def _call_sites(report: DmaReport) -> str:
    sites = report.input.call_sites if report.input is not None else ()
    if not sites:
        return "<p>The trace has no call chains.</p>"
    rows = [(one.site, one.allocations, one.bytes) for one in sites[:SHOWN_DEVICES]]
    return table(("function", "allocations", "bytes"), rows, is_sortable=True)


def _device(name: str, report: DmaReport) -> str:
    tally = report.by_device.get(name)
    return f"{name} {tally.driver}" if tally is not None and tally.driver else name


def _costs(what: str, costs: Iterable[tuple[str, Cost]]) -> str:
    rows = [
        (name or "(unknown)", *(getattr(cost, field) for _, field in _COST_COLUMNS))
        for name, cost in costs
    ]
    headings = (what, *(heading for heading, _ in _COST_COLUMNS))
    return table(headings, rows[:SHOWN_DEVICES], is_sortable=True)


def _leaks(report: DmaReport) -> str:
    rows = [(leak.device, leak.phase, leak.buffers, leak.pages, leak.line) for leak in report.leaks]
    rows.sort(key=lambda row: -row[3])
    return table(("device", "phase", "buffers", "pages", "first line"), rows[:SHOWN_DEVICES])


def _policies(policies: Mapping[str, PolicyFigures]) -> str:
    rows = [
        (
            name,
            figures.conversions,
            figures.hypercalls,
            figures.hypercalls_saved,
            figures.peak_shared_pages,
            f"{figures.mean_shared_pages:.0f}",
            f"{figures.extra_shared_pages:+.0f}",
        )
        for name, figures in policies.items()
    ]
    headings = ("policy", "conversions", "hypercalls", "saved", "peak shared", "mean", "extra")
    return table(headings, rows)


def _migrations(migrations: Sequence[Migration], start: int) -> str:
    rows = [
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
    ]
    headings = ("status", "at", "for", "sent", "again", "wrong way", "conversions meanwhile")
    words = "".join(
        f"<p>{escape(done.status.value)}: {done.changed_since_sent} pages changed their status "
        f"after they were sent last and were never written; {done.wrong_way} were sent the wrong "
        f"way, {done.wrong_page_seconds:.6g} page-seconds until they were sent again.</p>"
        for done in migrations
    )
    return table(headings, rows) + words


def _problems(report: DmaReport) -> str:
    lines = [
        f"line {violation.line}: {violation.check}: {violation.message}"
        for violation in (report.violations or ())[:SHOWN_ANOMALIES]
    ]
    lines += [
        f"line {anomaly.line}: {anomaly.kind.value}: {anomaly.message}"
        for anomaly in report.anomalies[:SHOWN_ANOMALIES]
    ]
    if not lines:
        return "<p>none</p>"
    return '<ul class="bad">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
