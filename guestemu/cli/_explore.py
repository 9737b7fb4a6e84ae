# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu explore` prints: the table, one witness, all witnesses, a random exploration."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from guestemu.abi.errors import InputError
from guestemu.abi.names import command_line
from guestemu.cli import console
from guestemu.cli._step_progress import StepProgress
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from guestemu.migration.model.count import Space
    from guestemu.migration.model.order_model import Scenario
    from guestemu.migration.model.pct import PctResult
    from guestemu.migration.model.report import CellReport, WitnessReport
    from guestemu.migration.model.table import CountRow, Table

MAX_LISTED: Final = 100_000


def show_table(
    scenarios: Sequence[Scenario], with_reduction: bool, as_json: bool, html: Path | None = None
) -> int:
    """Counts the cells, with `html` also as a page; exit status 1 if one of them loses."""
    from guestemu.migration.model.table import Table, count_row

    start = time.perf_counter()
    with StepProgress(sum(2 * scenario.steps + 1 for scenario in scenarios)) as progress:
        rows = tuple(count_row(one, with_reduction, progress.advance) for one in scenarios)
    table = Table.of(rows, time.perf_counter() - start)
    if html is not None:
        _write_table(html, scenarios, rows)
    if as_json:
        console.emit_json(table)
    elif with_reduction:
        _print_reduction(table.rows)
    elif len(rows) > 1:
        _print_matrix(table.rows)
    else:
        _print_cell(table.rows[0])
    _note_figures(table)
    return EXIT_FINDINGS if any(row.losing for row in rows) else EXIT_OK


_KEPT: Final = "every interleaving keeps the page"
_UNDEFINED: Final = "some lose bytes that are not defined (after a C-bit change)"
_LOST: Final = "some lose the page"


def _write_table(path: Path, scenarios: Sequence[Scenario], rows: Sequence[CountRow]) -> None:
    """The cells as an HTML page; each leads to its first losing interleaving."""
    from guestemu.report.matrix import Tried, matrix_document

    tried = []
    for scenario, row in zip(scenarios, rows, strict=True):
        kind = _LOST if row.lost_defined else _UNDEFINED if row.lost_strict else _KEPT
        first = ["--witness", 0] if row.lost_strict else []
        tried.append(
            Tried(
                row=row.order,
                column=row.script,
                word=f"{row.lost_strict} of {row.total}",
                kind=kind,
                detail=f"{row.lost_strict} of {row.total} interleavings of order {row.order} and "
                f"script {row.script} ({row.script_steps}) lose the page by lost_strict, "
                f"{row.lost_defined} by lost_defined.",
                command=_command(scenario, *first),
            )
        )
    scripts = dict.fromkeys(f"{row.script} is {row.script_steps}" for row in rows)
    words = (
        "A guest's script is merged in every way with the steps of a host's passes. A cell says "
        "how many of these interleavings lose the page, and leads to the command that shows one. "
        f"Columns are scripts: {', '.join(scripts)}. PTE- makes the leaf shared, PTE+ private; "
        "HC- and HC+ say the same to the host; tN! writes value N. Rows are the steps of a pass: "
        "auto fetches and clears the dirty log, GET fetches it, CLEAR clears it, enc copies the "
        "host's record of shared pages, send sends by the copy, send-live by the record of that "
        "moment."
    )
    kinds = {_KEPT: "good", _UNDEFINED: "warn", _LOST: "bad"}
    document = matrix_document("Interleavings that lose a page", words, tried, kinds, "order")
    console.write_document(path, document)


def _cell(row: CountRow) -> str:
    """Losing of all, and the losses that count as defined in brackets where they differ."""
    defined = f" ({row.lost_defined})" if row.lost_defined != row.lost_strict else ""
    return f"{row.lost_strict}/{row.total}{defined}"


def _print_matrix(rows: Sequence[CountRow]) -> None:
    scripts = list(dict.fromkeys(row.script for row in rows))
    lines: dict[str, list[str]] = {}
    for row in rows:
        number = f"{row.row} " if row.row else ""
        lines.setdefault(f"{number}{row.order}", []).append(_cell(row))
    console.emit_table(("order", *scripts), ([name, *cells] for name, cells in lines.items()))
    if any(row.lost_defined != row.lost_strict for row in rows):
        console.emit("losing by lost_strict/all interleavings (by lost_defined, if it differs)")
    else:
        console.emit("losing/all interleavings; lost_strict and lost_defined agree")


def _print_cell(row: CountRow) -> None:
    number = f"{row.row}: " if row.row else ""
    console.emit(f"order   {number}{row.order}")
    name = "" if row.script == row.script_steps else f"{row.script}: "
    console.emit(f"script  {name}{row.script_steps}")
    console.emit(f"lost_strict   {row.lost_strict} of {row.total} interleavings")
    console.emit(f"lost_defined  {row.lost_defined}")


def _print_reduction(rows: Sequence[CountRow]) -> None:
    lines = []
    for row in rows:
        kept = row.reduced.states if row.reduced is not None else 0
        ratio = f"{row.states / kept:.1f}" if kept else "-"
        verdict = "same" if row.is_agreed else "DIFFERENT"
        lines.append((row.order, row.script, _cell(row), row.states, kept, ratio, verdict))
    head = ("order", "script", "losing", "states", "reduced", "fewer", "zero or not")
    console.emit_table(head, lines)


def _note_figures(table: Table) -> None:
    text = (
        f"{table.states} states in {table.seconds:.2f} s ({table.states_per_second:.0f} states/s)"
    )
    if table.reduced_states is not None and table.reduced_states_per_second is not None:
        text += (
            f"; reduced to {table.reduced_states} "
            f"({table.reduced_states_per_second:.0f} states/s), "
            f"{table.disagreements} verdicts differ"
        )
    console.note(text)


def show_witness(
    scenario: Scenario, rank: int, by_defined: bool, as_json: bool, html: Path | None = None
) -> int:
    """Shows one losing interleaving as a race and state by state; with `html` also as a page."""
    from guestemu.migration.model.report import report
    from guestemu.migration.model.witness import unrank
    from guestemu.report.witness import witness_document

    space = _space(scenario)
    witness = unrank(space, rank, by_defined)
    shown = report(witness, with_steps=True)
    again = _command(scenario, "--witness", rank, *(["--defined"] if by_defined else []))
    document = witness_document(space, witness, again, by_defined)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json(_cell_report(space, shown), "cell")
    else:
        console.emit_document(document)
    return EXIT_FINDINGS


def _command(scenario: Scenario, *words: object) -> str:
    """The command that looks at this cell."""
    from guestemu.migration.model.notation import format_order, format_script

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


def list_witnesses(scenario: Scenario, by_defined: bool, as_json: bool) -> int:
    """Lists the losing interleavings with their ranks. Raises `InputError` if there are more than
    `MAX_LISTED`."""
    from guestemu.migration.model.report import report
    from guestemu.migration.model.witness import format_witness, losing, witnesses

    space = _space(scenario)
    count = losing(space.tally, by_defined)
    if count > MAX_LISTED:
        raise InputError(f"--list: {count} losing interleavings; --witness K shows one of them")
    if as_json:
        shown = [report(witness) for witness in witnesses(space, by_defined)]
        console.emit_json(_cell_report(space, *shown), "cell")
    else:
        for witness in witnesses(space, by_defined):
            console.emit(f"{witness.rank}  {format_witness(witness)}")
        console.note(f"{count} of {space.tally.total} interleavings")
    return EXIT_FINDINGS if count else EXIT_OK


def _space(scenario: Scenario) -> Space:
    from guestemu.migration.model.count import Space

    with StepProgress(2 * scenario.steps + 1) as progress:
        return Space(scenario, progress.advance)


def _cell_report(space: Space, *witnesses: WitnessReport) -> CellReport:
    from guestemu.migration.model.report import CellReport

    scenario, tally = space.scenario, space.tally
    return CellReport(
        order=scenario.order.name,
        script=scenario.script.name,
        passes=scenario.passes,
        losing=tally.lost_strict,
        total=tally.total,
        lost_strict=tally.lost_strict,
        lost_defined=tally.lost_defined,
        witnesses=witnesses,
    )


def show_random(scenario: Scenario, runs: int, depth: int, seed: int, as_json: bool) -> int:
    """Explores random interleavings; shows the first that loses and what may be left."""
    from guestemu.migration.model.pct import check_depth, explore_random
    from guestemu.migration.model.report import RandomReport, report
    from guestemu.migration.model.witness import replay

    check_depth(scenario, depth)
    with StepProgress(runs) as progress:
        result = explore_random(scenario, runs, depth, seed, progress.advance)
    first = None if result.first is None else report(replay(scenario, result.first))
    if as_json:
        random = RandomReport(
            scenario.order.name, scenario.script.name, scenario.passes, result, first
        )
        console.emit_json(random, "random")
    else:
        _print_random(result, first)
    if result.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FINDINGS if result.lost_strict else EXIT_OK


def _print_random(result: PctResult, first: WitnessReport | None) -> None:
    console.emit(f"{result.runs} runs, depth {result.depth}, seed {result.seed}")
    console.emit(f"distinct interleavings  {result.distinct} of {result.total}")
    console.emit(f"lost_strict             {result.lost_strict}")
    console.emit(f"lost_defined            {result.lost_defined}")
    console.emit(f"one more run is new     {result.new_chance:.3g} (estimated chance)")
    console.emit(f"a loss of depth {result.depth} missed  {result.miss_bound:.3g} (at most)")
    if first is not None:
        console.emit()
        console.emit(first.interleaving)
        console.emit(first.why)
