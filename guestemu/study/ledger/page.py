# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger as one HTML page: the matrix of policies and failures, and every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from guestemu.report.page import TableCell, html_page, section, table
from guestemu.study.ledger.cell import Row
from guestemu.study.ledger.failures import NOTHING
from guestemu.study.ledger.policies import LedgerRow
from guestemu.study.ledger.summary import PolicyTally, by_policy, is_unnoticed, tally

_WORDS: Final = (
    "<p>Each run: a flow of the guest in which one thing fails at one step, under one policy, then "
    "a migration to another machine with another key. <b>Unnoticed</b>: pages are lost and only "
    "guestemu's checks can know. A cell says how many of its runs lost pages, and leads to the "
    "first of them; rest the pointer on it for all of its figures.</p>"
)
_LEGEND: Final = (
    '<table class="legend" aria-label="Legend"><tbody><tr>'
    '<td class="v-bad">pages lost, unnoticed</td><td class="v-warn">pages lost and noticed, or the '
    'guest dead, the migration stopped, pages leaked</td><td class="v-good">harmless</td>'
    "</tr></tbody></table>"
)
TALLY_HEADINGS: Final = (
    *("policy", "runs", "lost, unnoticed", "lost, noticed", "stopped", "dead", "harmless"),
    *("leaked", "most pages"),
)
ROW_HEADINGS: Final = (
    *("policy", "flow", "when", "failure", "step", "noticed by", "migration", "waited"),
    *("lost", "strict", "bytes", "corrupted", "leaked"),
)
_LOST_COLUMN: Final = ROW_HEADINGS.index("lost")


def ledger_page(rows: Sequence[Row], policies: Sequence[LedgerRow]) -> str:
    """The page of `rows`; `policies` say what each name means."""
    ran = {row.policy for row in rows}
    known = [(policy.name, policy.text) for policy in policies if policy.name in ran]
    return html_page(
        "The error ledger",
        [
            "<h1>The error ledger</h1>",
            _WORDS,
            section("Policies", table(("policy", "on a failed notification"), known)),
            section(
                "In short",
                table(TALLY_HEADINGS, map(tally_cells, by_policy(rows)), is_sortable=True),
            ),
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
    places = {id(row): f"run-{number}" for number, row in enumerate(rows)}
    cells = (
        (name, *(_matrix_cell(groups.get((name, title), ()), places) for title in columns))
        for name in names
    )
    return _LEGEND + table(("policy", *columns), cells, is_sortable=True)


def _matrix_cell(rows: Sequence[Row], places: Mapping[int, str]) -> TableCell:
    """What became of the runs of one policy and failure (or flow)."""
    one = tally(rows)
    if not one.runs:
        return TableCell("")
    lost = one.unnoticed + one.noticed
    words = [
        (one.unnoticed, "lost pages, unnoticed"),
        (one.noticed, "lost pages, noticed"),
        (one.dead, "guest dead"),
        (one.stopped, "migration stopped"),
        (one.leaked, "leaked"),
        (one.harmless, "harmless"),
    ]
    worst = next((row for row in rows if is_unnoticed(row)), None)
    worst = worst or next((row for row in rows if row.lost), rows[0])
    is_harmless = one.harmless == one.runs and not one.leaked
    shown = [(lost, "lost"), *((count, what.split()[-1]) for count, what in words[2:5])]
    text = next((f"{count} of {one.runs} {what}" for count, what in shown if count), "harmless")
    return TableCell(
        text,
        "bad" if one.unnoticed else "good" if is_harmless else "warn",
        places[id(worst)],
        f"{one.runs} runs: " + ", ".join(f"{count} {what}" for count, what in words if count),
    )


def _runs(rows: Iterable[Row]) -> str:
    cells = (
        tuple(
            TableCell(text, "bad") if place == _LOST_COLUMN and is_unnoticed(row) else text
            for place, text in enumerate(row_cells(row))
        )
        for row in rows
    )
    return table(ROW_HEADINGS, cells, "Every run", is_sortable=True, row_id="run", is_words=True)


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
