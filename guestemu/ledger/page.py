# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger as one HTML page: the matrix of policies and failures, and every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Final

from guestemu.ledger.cell import Row
from guestemu.ledger.failures import NOTHING
from guestemu.ledger.policies import Policy
from guestemu.ledger.summary import PolicyTally, Tally, by_policy, is_unnoticed, tally
from guestemu.report.page import html_page, section, table

_WORDS: Final = (
    "<p>Each run: a flow of the guest in which one thing fails at one step, under one policy, then "
    "a migration to another machine with another key. <b>Unnoticed</b>: pages are lost and nobody "
    "but guestemu's checks can know. Cells: runs; after the slash those that lost pages, of them "
    "unnoticed in brackets; d guest dead, s migration stopped, k pages leaked.</p>"
)
TALLY_HEADINGS: Final = (
    *("policy", "runs", "lost, unnoticed", "lost, noticed", "stopped", "dead", "harmless"),
    *("leaked", "most pages"),
)
ROW_HEADINGS: Final = (
    *("policy", "flow", "when", "failure", "step", "noticed by", "migration", "waited"),
    *("lost", "strict", "bytes", "corrupted", "leaked"),
)


def ledger_page(rows: Sequence[Row], policies: Sequence[Policy]) -> str:
    """The page of `rows`; `policies` say what each name means."""
    ran = {row.policy for row in rows}
    known = [(policy.name, policy.text) for policy in policies if policy.name in ran]
    return html_page(
        "The error ledger",
        [
            "<h1>The error ledger</h1>",
            _WORDS,
            section("Policies", table(("policy", "on a failed notification"), known)),
            section("In short", table(TALLY_HEADINGS, map(tally_cells, by_policy(rows)))),
            section("Failures by policy", _matrix(rows, lambda row: row.failure)),
            section("Flows by policy", _matrix(rows, lambda row: row.flow)),
            section("Every run", _runs(rows)),
        ],
    )


def tally_cells(line: PolicyTally) -> tuple[str | int, ...]:
    """The cells of a policy's line under `TALLY_HEADINGS`."""
    one = line.tally
    return (
        line.policy,
        one.runs,
        one.unnoticed,
        one.noticed,
        one.stopped,
        one.dead,
        one.harmless,
        one.leaked,
        one.pages,
    )


def _matrix(rows: Sequence[Row], column: Callable[[Row], str]) -> str:
    failed = [row for row in rows if row.failure != NOTHING]
    columns = list(dict.fromkeys(map(column, failed)))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in failed:
        groups.setdefault((row.policy, column(row)), []).append(row)
    names = dict.fromkeys(row.policy for row in failed)
    return table(
        ("policy", *columns),
        (
            (name, *(_cell(tally(groups.get((name, title), ()))) for title in columns))
            for name in names
        ),
    )


def _cell(one: Tally) -> str:
    if not one.runs:
        return ""
    lost = one.unnoticed + one.noticed
    parts = [f"{one.runs} / {lost} ({one.unnoticed})" if lost else f"{one.runs}"]
    marks = (("d", one.dead), ("s", one.stopped), ("k", one.leaked))
    return " ".join(parts + [f"{mark}{count}" for mark, count in marks if count])


def _runs(rows: Iterable[Row]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ROW_HEADINGS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(_lines(rows))}</tbody></table>"


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        mark = ' class="bad"' if is_unnoticed(row) else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in row_cells(row))
        yield f"<tr{mark}>{cells}</tr>"


def row_cells(row: Row) -> tuple[str, ...]:
    """The texts of a run's line, under the headings of the page's last table."""
    return (
        row.policy,
        row.flow,
        row.when,
        row.failure,
        "-" if row.step < 0 else str(row.step),
        ", ".join(row.noticed_by) or "nobody",
        row.migration,
        row.waited or "-",
        str(row.lost),
        str(row.lost_strict),
        str(row.lost_bytes),
        str(row.corrupted),
        "?" if row.leaked is None else str(row.leaked),
    )
