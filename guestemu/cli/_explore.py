# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu explore` prints: the table, one witness, all witnesses, a random exploration."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from guestemu.abi.errors import InputError
from guestemu.cli import console
from guestemu.cli._step_progress import StepProgress
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestemu.migration.model.count import Space
    from guestemu.migration.model.order_model import Scenario
    from guestemu.migration.model.pct import PctResult
    from guestemu.migration.model.report import CellReport, WitnessReport
    from guestemu.migration.model.table import CountRow, Table

MAX_LISTED: Final = 100_000


def show_table(scenarios: Sequence[Scenario], with_reduction: bool, as_json: bool) -> int:
    """Counts the cells; exit status 1 if one of them loses."""
    from guestemu.migration.model.table import Table, count_row

    start = time.perf_counter()
    with StepProgress(sum(2 * scenario.steps + 1 for scenario in scenarios)) as progress:
        rows = tuple(count_row(one, with_reduction, progress.advance) for one in scenarios)
    table = Table.of(rows, time.perf_counter() - start)
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


def show_witness(scenario: Scenario, rank: int, by_defined: bool, as_json: bool) -> int:
    """Shows one losing interleaving, step by step."""
    from guestemu.migration.model.report import report
    from guestemu.migration.model.witness import unrank

    space = _space(scenario)
    shown = report(unrank(space, rank, by_defined), with_steps=True)
    if as_json:
        console.emit_json(_cell_report(space, shown), "cell")
        return EXIT_FINDINGS
    console.emit(shown.interleaving)
    console.emit()
    head = ("step", "by", "PTE", "status", "dirty", "snapshot", "copy", "source", "destination")
    lines = []
    for step in shown.steps:
        by = "guest" if step.side == "guest" else "host"
        number = f"{by} {step.live_pass}" if step.live_pass else by
        cells = (step.pte, step.status, step.dirty, step.snapshot, step.enc)
        lines.append((step.step, number, *cells, step.source, step.destination))
    console.emit_table(head, lines)
    console.emit()
    console.emit(shown.why)
    return EXIT_FINDINGS


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
