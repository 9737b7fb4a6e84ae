# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a campaign as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from guestemu.abi.names import plural
from guestemu.campaign.readings import Reading, StatsLine, ops_in_corpus, read_stats
from guestemu.campaign.screen import duration
from guestemu.report.card import Card, card_html, card_lines, rules_html
from guestemu.report.charts import bar_chart, step_chart
from guestemu.report.page import TableCell, figure, html_page, section, table

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


def report_page(reading: Reading, cards: Sequence[Card] = ()) -> str:
    """The page of the campaign that `reading` is of: the cards of its findings first, its figures
    behind them. Reads its statistics and corpus."""
    root = Path(reading.root)
    lines = read_stats(root)
    title = f"{reading.record.target} on {Path(reading.record.host).name}, {root.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_in_short(reading))}</p>",
        _findings(cards),
        _overview(reading),
    ]
    parts += [
        section(
            f"{name[0].upper()}{name[1:]} over time",
            figure(name, _plot(lines, name, field, identity)),
        )
        for name, field, identity in _PLOTS
    ]
    parts.append(section("Coverage by kind", _coverage(reading)))
    if lines and len(lines[-1].workers) > 1:
        workers = [(f"worker {n}", rate) for n, rate in enumerate(lines[-1].workers)]
        parts.append(
            section(
                "Executions a second by worker", figure("workers", bar_chart(workers, "workers"))
            )
        )
    if cards:
        rules = rules_html(cards)
        parts.append(section("Facts cited", rules) if rules else "")
    return html_page(title, parts)


def _in_short(reading: Reading) -> str:
    found = plural(len(reading.findings), "finding")
    state = "is running" if reading.is_running else "ended"
    return (
        f"{found} in {reading.executions:,} executions and {duration(reading.seconds)}; the "
        f"campaign {state}. Nothing new for "
        f"{duration(max(reading.seconds - reading.last_new_s, 0.0))}."
    )


def _overview(reading: Reading) -> str:
    record = reading.record
    figures = table(
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
    return section("Figures", figures)


def _findings(cards: Sequence[Card]) -> str:
    if not cards:
        return section("Findings", "<p>none</p>")
    rows = [
        (
            TableCell(key, to=key),
            TableCell(headline, "text"),
            TableCell(owner, "text"),
            TableCell(met, "text"),
        )
        for key, headline, owner, met in card_lines(cards)
    ]
    head = ("finding", "what is wrong", "whose defect", "met")
    body = table(head, rows, "Findings", is_sortable=True) if len(cards) > 1 else ""
    return section("Findings", body + "".join(map(card_html, cards)))


def _plot(lines: Sequence[StatsLine], name: str, field: str, identity: str) -> str:
    if not lines:
        return "<p>no figures yet</p>"
    step = -(-len(lines) // MAX_POINTS)
    chosen = [*lines[:-1:step], lines[-1]]
    values = [(line.seconds, float(getattr(line, field))) for line in chosen]
    return step_chart([(x, y, y) for x, y in [(0.0, 0.0), *values]], name, identity)


def _coverage(reading: Reading) -> str:
    latest = reading.latest
    if latest is None:
        return "<p>no figures yet</p>"
    kinds = (
        ("guest basic blocks", float(latest.guest_blocks)),
        ("model states", float(latest.model_states)),
        ("near misses", float(latest.near_misses)),
    )
    ops = ops_in_corpus(reading)
    bars = [(name, float(count)) for name, count in ops.most_common()]
    return (
        f"{figure('coverage', bar_chart(kinds, 'coverage'))}<p>Ops in the corpus, by kind:</p>"
        f"{figure('ops by kind', bar_chart(bars, 'ops-by-kind'))}"
    )
