# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger for a terminal and as a page: the matrix of policies and failures, and every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from guestemu.report.document import Chapter, Content, Document, Grid, Legend, Paragraph
from guestemu.report.page import TableCell
from guestemu.study.ledger.cell import Row
from guestemu.study.ledger.failures import NOTHING
from guestemu.study.ledger.policies import LedgerRow
from guestemu.study.ledger.summary import PolicyTally, by_policy, is_unnoticed, tally

_WORDS: Final = (
    "Each run: a flow of the guest in which one thing fails at one step, under one policy, then a "
    "migration to another machine with another key. Unnoticed: pages are lost and only guestemu's "
    "checks can know. A cell says how many of its runs lost pages, and leads to the first of them; "
    "rest the pointer on it for all of its figures."
)
_LEGEND: Final = Legend(
    (
        ("pages lost, unnoticed", "bad"),
        (
            "pages lost and noticed, or the guest dead, the migration stopped, pages leaked",
            "warn",
        ),
        ("harmless", "good"),
    )
)
_TALLY_HEADINGS: Final = (
    *("policy", "runs", "lost, unnoticed", "lost, noticed", "stopped", "dead", "harmless"),
    *("leaked", "most pages"),
)
_ROW_HEADINGS: Final = (
    *("policy", "flow", "when", "failure", "step", "noticed by", "migration", "waited"),
    *("lost", "strict", "bytes", "corrupted", "leaked"),
)
_LOST_COLUMN: Final = _ROW_HEADINGS.index("lost")


def ledger_document(
    rows: Sequence[Row], policies: Sequence[LedgerRow], *, shows_rows: bool = False
) -> Document:
    """The ledger of `rows`; `policies` say what each name means. A terminal shows what became of
    the runs of each policy, with `shows_rows` also every run; a page has all."""
    ran = {row.policy for row in rows}
    known = tuple((policy.name, policy.text) for policy in policies if policy.name in ran)
    tallies = tuple(map(_tally_cells, by_policy(rows)))
    return Document(
        "The error ledger",
        (
            Chapter("", (Paragraph(_WORDS),), is_page_only=True),
            Chapter(
                "Policies",
                (Grid(("policy", "on a failed notification"), known, is_words=True),),
                is_page_only=True,
            ),
            Chapter("In short", (Grid(_TALLY_HEADINGS, tallies),)),
            Chapter(
                "Failures by policy",
                _matrix(rows, lambda row: row.failure),
                is_page_only=True,
            ),
            Chapter("Flows by policy", _matrix(rows, lambda row: row.flow), is_page_only=True),
            Chapter("Every run", (_runs(rows),), is_page_only=not shows_rows),
        ),
    )


def _tally_cells(line: PolicyTally) -> tuple[str | int, ...]:
    """The cells of a policy's line under `_TALLY_HEADINGS`."""
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


def _matrix(rows: Sequence[Row], column: Callable[[Row], str]) -> tuple[Content, ...]:
    failed = [row for row in rows if row.failure != NOTHING]
    columns = list(dict.fromkeys(map(column, failed)))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in failed:
        groups.setdefault((row.policy, column(row)), []).append(row)
    names = dict.fromkeys(row.policy for row in failed)
    places = {id(row): f"run-{number}" for number, row in enumerate(rows)}
    cells = tuple(
        (name, *(_matrix_cell(groups.get((name, title), ()), places) for title in columns))
        for name in names
    )
    return _LEGEND, Grid(("policy", *columns), cells)


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


def _runs(rows: Iterable[Row]) -> Grid:
    cells = tuple(
        tuple(
            TableCell(text, "bad") if place == _LOST_COLUMN and is_unnoticed(row) else text
            for place, text in enumerate(_row_cells(row))
        )
        for row in rows
    )
    return Grid(_ROW_HEADINGS, cells, "Every run", is_words=True, row_id="run")


def _row_cells(row: Row) -> tuple[str, ...]:
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
