# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore` on the machine: --confirm, and --witness with --prog."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from guestemu.abi.errors import InputError
from guestemu.abi.files import write_atomically
from guestemu.abi.names import command_line
from guestemu.cli import console
from guestemu.cli._step_progress import StepProgress
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from guestemu.migration.model.order_model import Scenario
    from guestemu.migration.model.programs import LinkKind
    from guestemu.study.explore_confirm import Judge

MAX_CONFIRMED: Final = 100_000


def confirm(
    scenarios: Sequence[Scenario],
    wanted: str,
    seed: int,
    link: LinkKind,
    as_json: bool,
    cluster: str | None = None,
) -> int:
    """Re-runs losing interleavings and as many others, here or on the workers of the cluster at
    this address; exit status 1 if a verdict differs. Raises
    `InputError` for a `wanted` that is neither a number nor "all", or for too many."""
    from guestemu.migration.model.count import Space
    from guestemu.migration.model.programs import check_rules
    from guestemu.study.explore_confirm import confirm as run
    from guestemu.study.explore_confirm import confirmation_document, planned

    if wanted != "all" and not (wanted.isdecimal() and int(wanted)):
        raise InputError(f"--confirm {wanted!r}: give a number of interleavings from 1 on, or all")
    for scenario in scenarios:
        check_rules(scenario.rules)
    most = None if wanted == "all" else int(wanted)
    spaces = [Space(scenario) for scenario in scenarios]
    count = planned(spaces, most)
    if count > MAX_CONFIRMED:
        raise InputError(f"--confirm: {count} losing interleavings; give up to {MAX_CONFIRMED}")
    with _judge(cluster) as judge, StepProgress(2 * count) as progress:
        found = run(spaces, most, seed, link, progress.advance, judge)
    if as_json:
        console.emit_json(found, "confirm")
    else:
        console.emit_document(confirmation_document(found))
        rate = found.runs / found.seconds if found.seconds else 0.0
        console.note(f"{found.seconds:.1f} s ({rate:.0f} migrations/s)")
    if found.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FINDINGS if found.disagreements else EXIT_OK


def _judge(cluster: str | None) -> AbstractContextManager[Judge | None]:
    if cluster is None:
        return nullcontext()
    from guestemu.cli._cluster import judge

    return judge(cluster)


def write(scenario: Scenario, rank: int, by_defined: bool, link: LinkKind, path: Path) -> None:
    """Writes losing interleaving `rank` as a program. Raises `InputError` where there is no such
    interleaving, or the file cannot be written."""
    from guestemu.migration.model.count import Space
    from guestemu.migration.model.programs import witness_comment, witness_program
    from guestemu.migration.model.witness import unrank
    from guestemu.program.text import format_text

    witness = unrank(Space(scenario), rank, by_defined)
    text = format_text(witness_program(witness, link), witness_comment(witness))
    write_atomically(path, text.encode(), "--prog")
    console.note(f"wrote {path}; {command_line('run', path)} shows the loss")
