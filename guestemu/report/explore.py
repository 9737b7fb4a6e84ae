# SPDX-License-Identifier: GPL-2.0-or-later
"""What the order model counted, as documents: cells, their reduced exploration, random ones, the
attacks on an SNP guest's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from guestemu.abi.names import command_line
from guestemu.migration.model.notation import format_order, format_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.page_states import GUESTS, PageStatesResult
from guestemu.migration.model.pct import PctResult
from guestemu.migration.model.report import WitnessReport
from guestemu.migration.model.table import CountRow
from guestemu.report.document import Chapter, Content, Document, Grid, Paragraph
from guestemu.report.matrix import Tried, matrix_contents

_KEPT: Final = "all keep the page"
_UNDEFINED: Final = "some lose bytes that are not defined"
_LOST: Final = "some lose the page"
_VALUES: Final = {_KEPT: "good", _UNDEFINED: "warn", _LOST: "bad"}


def cells_document(scenarios: Sequence[Scenario], rows: Sequence[CountRow]) -> Document:
    """The cells as a matrix, a single one in words; on a page each leads to the command that shows
    its first losing interleaving."""
    tried = [_tried(one, row) for one, row in zip(scenarios, rows, strict=True)]
    matrix, cells = matrix_contents("Interleavings that lose a page", tried, _VALUES, "order")
    is_single = len(rows) == 1
    return Document(
        "Interleavings that lose a page",
        (
            Chapter("", (Paragraph(_about(rows)),), is_page_only=True),
            *([Chapter("", _cell_words(rows[0]))] if is_single else ()),
            Chapter("", (*matrix, Paragraph(_meaning(rows))), is_page_only=is_single),
            Chapter("Every cell", cells, is_page_only=True),
        ),
    )


def _tried(scenario: Scenario, row: CountRow) -> Tried:
    kind = _LOST if row.lost_defined else _UNDEFINED if row.lost_strict else _KEPT
    first = ["--witness", 0] if row.lost_strict else []
    number = f"{row.row} " if row.row else ""
    return Tried(
        row=f"{number}{row.order}",
        column=row.script,
        word=_losing(row),
        kind=kind,
        detail=f"{row.lost_strict} of {row.total} interleavings of order {row.order} and "
        f"script {row.script} ({row.script_steps}) lose the page by lost_strict, "
        f"{row.lost_defined} by lost_defined.",
        command=cell_command(scenario, *first),
    )


def _about(rows: Iterable[CountRow]) -> str:
    scripts = dict.fromkeys(f"{row.script} is {row.script_steps}" for row in rows)
    return (
        "A guest's script is merged in every way with the steps of a host's passes. A cell says "
        "how many of these interleavings lose the page, and leads to the command that shows one. "
        f"Columns are scripts: {', '.join(scripts)}. PTE- makes the leaf shared, PTE+ private; "
        "HC- and HC+ say the same to the host; tN! writes value N. Rows are the steps of a pass: "
        "auto fetches and clears the dirty log, GET fetches it, CLEAR clears it, enc copies the "
        "host's record of shared pages, send sends by the copy, send-live by the record of that "
        "moment."
    )


def _meaning(rows: Iterable[CountRow]) -> str:
    if any(row.lost_defined != row.lost_strict for row in rows):
        return "losing by lost_strict/all interleavings (by lost_defined, if it differs)"
    return "losing/all interleavings; lost_strict and lost_defined agree"


def _losing(row: CountRow) -> str:
    """Losing of all, and the losses that count as defined in brackets where they differ."""
    defined = f" ({row.lost_defined})" if row.lost_defined != row.lost_strict else ""
    return f"{row.lost_strict}/{row.total}{defined}"


def _cell_words(row: CountRow) -> tuple[Content, ...]:
    number = f"{row.row}: " if row.row else ""
    name = "" if row.script == row.script_steps else f"{row.script}: "
    what = (("order", f"{number}{row.order}"), ("script", f"{name}{row.script_steps}"))
    losing = f"{row.lost_strict} of {row.total} interleavings"
    figures = (("lost_strict", losing), ("lost_defined", row.lost_defined))
    return Grid((), what, "The cell", is_words=True), Grid((), figures, "Losing", is_words=True)


def cell_command(scenario: Scenario, *words: object) -> str:
    """The command that looks at this cell."""
    rules = scenario.rules
    words_of_cell: list[object] = ["--order", scenario.order.row]
    if scenario.order.row is None:
        words_of_cell = ["--order", format_order(scenario.order.steps)]
    words_of_cell += ["--script", format_script(scenario.script.steps)]
    words_of_cell += ["--passes", scenario.passes]
    for name in rules.__struct_fields__:
        if getattr(rules, name):
            words_of_cell += ["--rule", name.replace("_", "-")]
    return command_line("explore", *words_of_cell, *words)


def reduction_document(rows: Iterable[CountRow]) -> Document:
    """What the reduced exploration of each cell kept, and whether it says the same."""
    lines = []
    for row in rows:
        kept = row.reduced.states if row.reduced is not None else 0
        ratio = f"{row.states / kept:.1f}" if kept else "-"
        verdict = "same" if row.is_agreed else "DIFFERENT"
        lines.append((row.order, row.script, _losing(row), row.states, kept, ratio, verdict))
    head = ("order", "script", "losing", "states", "reduced", "fewer", "zero or not")
    return Document("", lead=(Grid(head, tuple(lines)),))


def random_document(result: PctResult, first: WitnessReport | None) -> Document:
    """What random interleavings showed, and what they may have missed; the first that loses."""
    figures = (
        ("distinct interleavings", f"{result.distinct} of {result.total}"),
        ("lost_strict", result.lost_strict),
        ("lost_defined", result.lost_defined),
        ("one more run is new", f"{result.new_chance:.3g} (estimated chance)"),
        (f"a loss of depth {result.depth} missed", f"{result.miss_bound:.3g} (at most)"),
    )
    losing = () if first is None else (Paragraph(first.interleaving), Paragraph(first.why))
    return Document(
        f"{result.runs} runs, depth {result.depth}, seed {result.seed}",
        (Chapter("", losing),) if losing else (),
        (Grid((), figures),),
    )


def page_states_document(results: Iterable[PageStatesResult]) -> Document:
    """What the sequences of each guest came to, and the first broken one."""
    texts = {code.name: code.text for code in GUESTS}
    rows, broken = [], []
    for one in results:
        outcomes = ", ".join(f"{outcome} {count}" for outcome, count in one.outcomes.items())
        rows.append((one.guest, one.sequences, outcomes))
        if one.is_broken:
            broken.append(Paragraph(f"{one.guest}: {texts[one.guest]}: {one.first}"))
    return Document("", lead=(Grid(("guest", "sequences", "outcomes"), tuple(rows)), *broken))
