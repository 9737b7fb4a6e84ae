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
    from pathlib import Path

    from guestemu.migration.model.count import Space
    from guestemu.migration.model.order_model import Scenario
    from guestemu.migration.model.report import CellReport, WitnessReport
    from guestemu.migration.model.table import Table

MAX_LISTED: Final = 100_000


def show_table(
    scenarios: Sequence[Scenario], with_reduction: bool, as_json: bool, html: Path | None = None
) -> int:
    """Counts the cells, with `html` also as a page; exit status 1 if one of them loses."""
    from guestemu.migration.model.table import Table, count_row
    from guestemu.report.explore import cells_document, reduction_document

    start = time.perf_counter()
    with StepProgress(sum(2 * scenario.steps + 1 for scenario in scenarios)) as progress:
        rows = tuple(count_row(one, with_reduction, progress.advance) for one in scenarios)
    table = Table.of(rows, time.perf_counter() - start)
    document = reduction_document(rows) if with_reduction else cells_document(scenarios, rows)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json(table)
    else:
        console.emit_document(document)
    _note_figures(table)
    return EXIT_FINDINGS if any(row.losing for row in rows) else EXIT_OK


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
    from guestemu.report.explore import cell_command
    from guestemu.report.witness import witness_document

    space = _space(scenario)
    witness = unrank(space, rank, by_defined)
    shown = report(witness, with_steps=True)
    again = cell_command(scenario, "--witness", rank, *(["--defined"] if by_defined else []))
    document = witness_document(space, witness, again, by_defined)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json(_cell_report(space, shown), "cell")
    else:
        console.emit_document(document)
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
    from guestemu.report.explore import random_document

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
        console.emit_document(random_document(result, first))
    if result.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FINDINGS if result.lost_strict else EXIT_OK
