# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns as documents: what one came to at its end, how some stand, and the report of one: its
findings as cards, its figures, its plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guestemu.abi.names import plural
from guestemu.campaign.readings import Reading, StatsLine, ops_in_corpus, read_stats
from guestemu.campaign.screen import duration, space_line, status_line
from guestemu.report.card import Card
from guestemu.report.charts import bar_chart, step_chart
from guestemu.report.document import (
    Chapter,
    Content,
    Document,
    Grid,
    Paragraph,
    Svg,
    cited_facts,
)
from guestemu.report.page import TableCell

if TYPE_CHECKING:
    from guestemu.campaign.campaign import Campaign
    from guestemu.campaign.figures import Figures

MAX_POINTS: Final = 600
"""Points of a plot; of more lines, evenly spaced ones are drawn."""

_PLOTS: Final = (
    ("executions a second", "execs_per_second", "rate-over-time"),
    ("inputs in the corpus", "corpus_size", "corpus-over-time"),
    ("guest blocks", "guest_blocks", "guest-blocks-over-time"),
    ("model states", "model_states", "model-states-over-time"),
    ("near misses", "near_misses", "near-misses-over-time"),
    ("findings", "findings", "findings-over-time"),
)


def campaign_document(reading: Reading, cards: Sequence[Card] = ()) -> Document:
    """The campaign that `reading` is of: the cards of its findings first, its figures behind them.
    Reads its statistics and corpus."""
    root = Path(reading.root)
    lines = read_stats(root)
    workers = lines[-1].workers if lines else ()
    chapters = [
        Chapter("", (Paragraph(_in_short(reading)),)),
        Chapter("Findings", _findings(cards)),
        Chapter("Figures", (_figures(reading),)),
        *(
            Chapter(
                f"{name[0].upper()}{name[1:]} over time", (_plot(lines, name, field, identity),)
            )
            for name, field, identity in _PLOTS
        ),
        Chapter("Coverage by kind", _coverage(reading)),
    ]
    if len(workers) > 1:
        bars = [(f"worker {n}", rate) for n, rate in enumerate(workers)]
        picture = Svg("workers", bar_chart(bars, "workers"))
        chapters.append(Chapter("Executions a second by worker", (picture,)))
    if facts := tuple(cited_facts(cards)):
        chapters.append(Chapter("Facts cited", facts))
    title = f"{reading.record.target} on {Path(reading.record.host).name}, {root.name}"
    return Document(title, tuple(chapters))


def ended_document(campaign: Campaign, figures: Figures) -> Document:
    """What `guestemu fuzz` says at the end."""
    lead: list[Content] = []
    if figures.executions:
        text = (
            f"{figures.median_ops} ops per program (median); last new coverage after "
            f"{duration(figures.last_new_s)}; work directory {campaign.store.root}"
        )
        lead.append(Paragraph(text))
    if figures.space is not None:
        lead.append(Paragraph(space_line(figures)))
    lead += (Paragraph(f"infrastructure: {line}", "yellow") for line in figures.infrastructure)
    lead += (Paragraph(f"not reproducible: {line}", "yellow") for line in figures.unstable)
    if not figures.findings:
        lead.append(Paragraph("nothing found", "green"))
        return Document(status_line(figures), lead=tuple(lead))
    rows = tuple(
        (
            f"{found.key} (accepted)" if campaign.is_accepted(found.key) else found.key,
            f"{found.count:,}",
            duration(found.first_seen_s),
            campaign.store.finding_path(found.key),
        )
        for found in figures.findings
    )
    findings = Grid(("finding", "count", "first after", "program"), rows)
    return Document(status_line(figures), (Chapter("", (findings,)),), tuple(lead))


def status_document(readings: Sequence[Reading]) -> Document:
    """What `guestemu status` says: a row for each campaign, and a line for each finding."""
    rows = tuple(map(_status_row, readings))
    head = (
        *("campaign", "target", "state", "time", "executions", "per s", "corpus"),
        *("blocks+states", "nothing new for", "findings"),
    )
    found = (
        Paragraph(f"{reading.root}: {found.key} ×{found.count:,}", "red")
        for reading in readings
        for found in reading.findings
    )
    return Document("", lead=(Grid(head, rows), *found))


def _status_row(reading: Reading) -> tuple[object, ...]:
    latest = reading.latest
    return (
        reading.root,
        reading.record.target,
        "running" if reading.is_running else "ended",
        duration(reading.seconds),
        f"{reading.executions:,}",
        f"{reading.execs_per_second:,.0f}",
        f"{reading.corpus_size:,}",
        f"{latest.guest_blocks if latest else 0}+{latest.model_states if latest else 0}",
        duration(max(reading.seconds - reading.last_new_s, 0.0)),
        len(reading.findings),
    )


def _in_short(reading: Reading) -> str:
    found = plural(len(reading.findings), "finding")
    state = "is running" if reading.is_running else "ended"
    return (
        f"{found} in {reading.executions:,} executions and {duration(reading.seconds)}; the "
        f"campaign {state}. Nothing new for "
        f"{duration(max(reading.seconds - reading.last_new_s, 0.0))}."
    )


def _figures(reading: Reading) -> Grid:
    record = reading.record
    return Grid(
        ("figure", "value"),
        (
            ("state", "running" if reading.is_running else "ended"),
            ("guest", record.guest),
            ("host", record.host),
            ("C-bit", record.cbit),
            ("memory", f"{record.memory} MiB"),
            ("programs run in", record.runs_in or "not noted"),
            ("fault ops", "yes" if record.faults else "no"),
            ("time", duration(reading.seconds)),
            ("executions", f"{reading.executions:,}"),
            ("executions a second", f"{reading.execs_per_second:,.0f}"),
            ("inputs in the corpus", f"{reading.corpus_size:,}"),
            ("nothing new for", duration(max(reading.seconds - reading.last_new_s, 0.0))),
            ("findings", len(reading.findings)),
        ),
    )


def _findings(cards: Sequence[Card]) -> tuple[Content, ...]:
    if not cards:
        return (Paragraph("none"),)
    if len(cards) == 1:
        return tuple(cards)
    rows = tuple(
        (
            TableCell(card.key, to=card.key),
            TableCell(card.headline, "text"),
            TableCell(card.owner, "text"),
            TableCell(card.met, "text"),
        )
        for card in cards
    )
    head = ("finding", "what is wrong", "whose defect", "met")
    return Grid(head, rows, "Findings"), *cards


def _plot(lines: Sequence[StatsLine], name: str, field: str, identity: str) -> Content:
    if not lines:
        return Paragraph("no figures yet")
    step = -(-len(lines) // MAX_POINTS)
    chosen = [*lines[:-1:step], lines[-1]]
    values = [(line.seconds, float(getattr(line, field))) for line in chosen]
    points = [(x, y, y) for x, y in [(0.0, 0.0), *values]]
    return Svg(name, step_chart(points, name, identity))


def _coverage(reading: Reading) -> tuple[Content, ...]:
    latest = reading.latest
    if latest is None:
        return (Paragraph("no figures yet"),)
    kinds = (
        ("guest basic blocks", float(latest.guest_blocks)),
        ("model states", float(latest.model_states)),
        ("near misses", float(latest.near_misses)),
    )
    ops = ops_in_corpus(reading)
    bars = [(name, float(count)) for name, count in ops.most_common()]
    return (
        Svg("coverage", bar_chart(kinds, "coverage")),
        Paragraph("Ops in the corpus, by kind:"),
        Svg("ops by kind", bar_chart(bars, "ops-by-kind")),
    )
