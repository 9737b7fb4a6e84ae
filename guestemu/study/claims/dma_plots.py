# SPDX-License-Identifier: GPL-2.0-or-later
"""The plots of C9 to C12: what is written anew, how long buffers live, what a boot shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from guestemu.dma.clearing import ClearingPath
from guestemu.dma.document import human_time
from guestemu.dma.report import DmaReport
from guestemu.report.charts import bar_chart, step_chart, svg_file
from guestemu.study.claims.result import Plot

_PERCENT: Final = 100
_PAGES: Final = "shared pages"


def rewritten_plot(name: str, paths: Iterable[tuple[str, ClearingPath]]) -> Plot:
    """For each guest and path the part of the converted pages that is written right after."""
    bars = [
        (f"{guest}: {path.name}", round(_PERCENT * path.rewritten / path.pages, 1))
        for guest, path in paths
        if path.pages
    ]
    title = "Pages written anew after their conversion, percent of those converted"
    return Plot(name, title, svg_file(bar_chart(bars, name, "%")))


def lifetime_plot(name: str, trace: str, report: DmaReport) -> Plot:
    """How many buffers of a recorded trace lived how long; the last bar: those that still do."""
    bars = [
        (f"freed after {human_time(low)} and more", float(count))
        for low, count in report.lifetime_buckets.items()
    ]
    bars.append(("never freed", float(report.live_at_end)))
    title = f"Trace {trace}: buffers by their lifetime; each bar reaches to twice its beginning"
    return Plot(name, title, svg_file(bar_chart(bars, name)))


def sharing_plots(prefix: str, reports: Mapping[str, DmaReport]) -> tuple[Plot, ...]:
    """Shared pages over the time of each recorded trace."""
    plots = []
    for trace, report in reports.items():
        if report.analysis is None:
            continue
        buckets = report.analysis.shared.buckets
        points = [
            ((one.time_ns - buckets[0].time_ns) / 1e9, float(one.highest), float(one.last))
            for one in buckets
        ]
        name = f"{prefix}-{trace}"
        chart = step_chart(points, _PAGES, name)
        plots.append(Plot(name, f"Trace {trace}: {_PAGES} over time", svg_file(chart)))
    return tuple(plots)


def boot_plot(name: str, kernel: str, levels: Sequence[int]) -> Plot:
    """What the host has as shared after each exit of a kernel's boot."""
    points = [(float(number), float(level), float(level)) for number, level in enumerate(levels)]
    title = f"{kernel}: pages that the host has as shared, by exits of boot and freeing"
    chart = step_chart(points, _PAGES, name, along="exits")
    return Plot(name, title, svg_file(chart))
