# SPDX-License-Identifier: GPL-2.0-or-later
"""The analysis and a comparison of policies for people: tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guestemu.abi.text import visible
from guestemu.dma.analysis import Analysis
from guestemu.dma.cost import Cost
from guestemu.dma.migration import Migration
from guestemu.dma.policy_figures import PolicyFigures

SHOWN_ROWS: Final = 20


def shown(text: str, style: str = "") -> Text:
    """`text`, parts of which are names in a trace, as a terminal may have it."""
    return Text(visible(text), style=style)


def print_analysis(console: Console, analysis: Analysis) -> None:
    """What the trace cost, by driver and in all, and where the shared pages lie."""
    table = _table("Conversions by driver")
    headings = ("driver", "calls", "pages", "hypercalls", "2 MiB", "splits", "TLB pages", "whole")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "driver" else "right")
    drivers = sorted(analysis.by_driver.items(), key=lambda item: -item[1].pages_converted)
    for name, cost in drivers[:SHOWN_ROWS]:
        table.add_row(shown(name or "(unknown)"), *_cells(cost))
    table.add_row("all", *_cells(analysis.total))
    console.print(table)
    spread = analysis.fragmentation
    shared = analysis.shared
    lines = [
        f"shared pages with the pools: at most {shared.peak}, {shared.mean:.0f} on average, "
        f"{shared.at_end} at the end",
        f"in {spread.runs} runs and {spread.ranges} ranges of 2 MiB; {spread.ranges_needed} ranges "
        f"would hold them",
        f"{analysis.splits_unneeded} large pages stay split although each is wholly private",
        f"cache lines of {analysis.total.cache_bytes >> 10} KiB flushed where the CPU is not "
        f"coherent",
        f"{analysis.total.exposed_pages} pages were shared before they were cleared"
        f", {analysis.total.never_cleared_pages} never were",
    ]
    for line in lines:
        console.print(shown(line), soft_wrap=True)


def print_policies(console: Console, policies: Mapping[str, PolicyFigures]) -> None:
    """One row per policy; savings are against the kernel's own way."""
    table = _table("Policies")
    for heading in ("policy", "calls", "saved", "hypercalls", "saved", "peak shared", "mean more"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for name, figures in policies.items():
        table.add_row(
            name,
            str(figures.conversions),
            str(figures.conversions_saved),
            str(figures.hypercalls),
            str(figures.hypercalls_saved),
            str(figures.peak_shared_pages),
            f"{figures.extra_shared_pages:+.0f}",
        )
    console.print(table)


def print_migrations(console: Console, migrations: Sequence[Migration]) -> None:
    """One row per migration."""
    table = _table("Migration over the run")
    headings = ("status", "passes", "sent", "again", "wrong way", "changed", "last pages", "ms")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "status" else "right")
    for done in migrations:
        if not done.has_begun:
            console.print(shown("the migration's start lies behind the end of the trace"))
            return
        table.add_row(
            done.status.value,
            str(len(done.passes)),
            str(done.sent),
            str(done.resent),
            str(done.wrong_way),
            str(done.changed_since_sent),
            str(done.blackout_pages),
            f"{done.blackout_seconds * 1000:.3g}",
        )
    console.print(table)


def _cells(cost: Cost) -> tuple[str, ...]:
    figures = (
        cost.conversions,
        cost.pages_converted,
        cost.hypercalls,
        cost.calls_2m,
        cost.splits,
        cost.tlb_pages,
        cost.tlb_flushes,
    )
    return tuple(map(str, figures))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
