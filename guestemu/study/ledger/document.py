# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger for a terminal and as a page: the matrix of policies and failures, and every run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from guestemu.abi.names import plural
from guestemu.report.document import Chapter, Content, Document, Grid, Paragraph
from guestemu.report.matrix import Tried, matrix_contents
from guestemu.report.page import TableCell
from guestemu.study.ledger.cell import Row
from guestemu.study.ledger.failures import NOTHING
from guestemu.study.ledger.policies import LedgerRow
from guestemu.study.ledger.summary import PolicyTally, by_policy, is_unnoticed, tally

_WORDS: Final = (
    "Each run: a flow of the guest in which one thing fails at one step, under one policy, then a "
    "migration to another machine with another key. Unnoticed: pages are lost and only guestemu's "
    "checks can know. A cell says how many of its runs lost pages, and leads to all of its "
    "figures, its worst run and the command that runs it again."
)
_UNNOTICED: Final = "pages lost, unnoticed"
_NOTICED: Final = "pages lost and noticed, or the guest dead, the migration stopped, pages leaked"
_HARMLESS: Final = "harmless"
_VALUES: Final = {_UNNOTICED: "bad", _NOTICED: "warn", _HARMLESS: "good"}
_MATRICES: Final[tuple[tuple[str, str, Callable[[Row], str]], ...]] = (
    ("failure", "Failures by policy", lambda row: row.failure),
    ("flow", "Flows by policy", lambda row: row.flow),
)
_TALLY_HEADINGS: Final = (
    *("policy", "runs", "lost, unnoticed", "lost, noticed", "stopped", "dead", "harmless"),
    *("leaked", "most pages"),
)
_ROW_HEADINGS: Final = (
    *("policy", "flow", "when", "failure", "steps", "noticed by", "migration", "waited"),
    *("lost", "strict", "bytes", "corrupted", "leaked"),
)
_LOST_COLUMN: Final = _ROW_HEADINGS.index("lost")


_ALL: Final[Mapping[str, Sequence[str]]] = {}


def ledger_document(
    rows: Sequence[Row],
    policies: Sequence[LedgerRow],
    *,
    shows_rows: bool = False,
    only: Mapping[str, Sequence[str]] = _ALL,
    options: Sequence[str] = (),
) -> Document:
    """The ledger of `rows`; `policies` say what each name means. A terminal shows what became of
    the runs of each policy, with `shows_rows` also every run; a page has all. `only` are the names
    of "flow" and "failure" that were asked for, `options` the other words of the command that
    change a run."""
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
            *_matrices(rows, only, options),
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


def _matrices(
    rows: Sequence[Row], only: Mapping[str, Sequence[str]], options: Sequence[str]
) -> Iterable[Chapter]:
    """The matrices, and behind them their cells."""
    places = {
        row: f"run-{number}" for number, found in enumerate(_lines(rows).values()) for row in found
    }
    cells: list[Content] = []
    for column, title, value in _MATRICES:
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row.failure != NOTHING:
                groups.setdefault((row.policy, value(row)), []).append(row)
        rest = [
            word
            for name, chosen in only.items()
            if name != column
            for one in chosen
            for word in (f"--{name}", one)
        ]
        tried = [
            _tried(
                group,
                name,
                places,
                ("--policy", group[0].policy, f"--{column}", name, *rest, *options),
            )
            for (_, name), group in groups.items()
        ]
        matrix, found = matrix_contents(title, tried, _VALUES, "policy", column)
        yield Chapter(title, matrix, is_page_only=True)
        cells += found
    yield Chapter("Every cell", tuple(cells), is_page_only=True)


def _tried(
    rows: Sequence[Row], column: str, places: Mapping[Row, str], words: Sequence[str]
) -> Tried:
    """What became of the runs of one policy and failure (or flow); `words` select them."""
    one = tally(rows)
    lost = one.unnoticed + one.noticed
    counts = [
        (one.unnoticed, "lost pages, unnoticed"),
        (one.noticed, "lost pages, noticed"),
        (one.dead, "guest dead"),
        (one.stopped, "migration stopped"),
        (one.leaked, "leaked"),
        (one.harmless, "harmless"),
    ]
    figures = ", ".join(f"{count} {what}" for count, what in counts if count)
    is_harmless = one.harmless == one.runs and not one.leaked
    shown = [(lost, "lost"), *((count, what.split()[-1]) for count, what in counts[2:5])]
    text = next((f"{count} of {one.runs} {what}" for count, what in shown if count), "harmless")
    worst = max(rows, key=lambda row: (is_unnoticed(row), row.lost))
    return Tried(
        row=rows[0].policy,
        column=column,
        word=text,
        detail=f"{plural(one.runs, 'run')}: {figures}",
        command=shlex.join(("guestemu", "ledger", *words, "--rows")),
        kind=_UNNOTICED if one.unnoticed else _HARMLESS if is_harmless else _NOTICED,
        more=Paragraph(_run_words(worst), to=places[worst]),
    )


def _run_words(row: Row) -> str:
    """A run in one line."""
    lost = f"{plural(row.lost, 'page')} lost" if row.lost else "nothing lost"
    noticed = ", ".join(row.noticed_by) or "nobody"
    return (
        f"{row.failure} at step {row.step} of {row.flow}, {row.when} a migration: {lost}, "
        f"migration {row.migration}, noticed by {noticed}"
    )


class _Line(msgspec.Struct, frozen=True):
    """Runs of one policy and flow with one outcome: each of `failures` at each of `steps`, with a
    migration at each of `whens`. `outcome` is any of them without these three."""

    outcome: Row
    steps: tuple[int, ...]
    failures: tuple[str, ...]
    whens: tuple[str, ...]


def _lines(rows: Iterable[Row]) -> dict[_Line, list[Row]]:
    """As few lines as have every run once, and each line's runs, in their order."""
    found: dict[_Line, list[Row]] = {}
    for row in rows:
        outcome = replace(row, step=0, failure="", when="")
        steps = () if row.failure == NOTHING else (row.step,)
        found.setdefault(_Line(outcome, steps, (row.failure,), (row.when,)), []).append(row)
    for field in ("steps", "failures", "whens"):
        alike: dict[_Line, list[_Line]] = {}
        for line in found:
            alike.setdefault(replace(line, **{field: ()}), []).append(line)
        found = {
            replace(
                rest, **{field: tuple(each for line in lines for each in getattr(line, field))}
            ): [row for line in lines for row in found[line]]
            for rest, lines in alike.items()
        }
    return found


def _runs(rows: Iterable[Row]) -> Grid:
    cells = tuple(
        tuple(
            TableCell(text, "bad") if place == _LOST_COLUMN and is_unnoticed(line.outcome) else text
            for place, text in enumerate(_line_cells(line))
        )
        for line in _lines(rows)
    )
    return Grid(_ROW_HEADINGS, cells, "Every run", is_words=True, row_id="run")


def _line_cells(line: _Line) -> tuple[str, ...]:
    """The texts of a line, under the headings of the page's last table."""
    row = line.outcome
    return (
        row.policy,
        row.flow,
        ", ".join(line.whens),
        ", ".join(line.failures),
        ", ".join(map(str, line.steps)) or "-",
        ", ".join(row.noticed_by) or "nobody",
        row.migration,
        row.waited or "-",
        str(row.lost),
        str(row.lost_strict),
        str(row.lost_bytes),
        str(row.corrupted),
        "?" if row.leaked is None else str(row.leaked),
    )
