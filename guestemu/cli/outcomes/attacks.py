# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes attacks`: real kernels' conversions, attacked before each instruction."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guestemu.abi.errors import InputError
from guestemu.abi.files import write_atomically
from guestemu.cli import console
from guestemu.cli._options import AsJson, PageFile, image_option
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.study.outcomes.attacks import AttackRow

_DEFAULT = ("6.12",)


def command(
    images: Annotated[list[str] | None, image_option("6.12")] = None,
    sev: Annotated[
        list[str] | None,
        typer.Option(
            "--sev",
            metavar="KIND",
            help="Guest kind: snp, tdx (repeatable).  [default: snp]",
            show_default=False,
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            metavar="NAME",
            help="This attack or event only (repeatable); an unknown name lists them.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", metavar="N", min=1, help="Each Nth instruction; 1: all.")
    ] = 50,
    first: Annotated[
        int, typer.Option("--first", metavar="N", min=0, help="Begin at this instruction.")
    ] = 0,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="Append runs to FILE, leave out those that it has, and show them all.",
        ),
    ] = None,
    page: PageFile = None,
    as_json: AsJson = False,
) -> int:
    """Attack the conversions of a real kernel on their way.

    The kernel makes two pages shared, or private again. Before an instruction the hypervisor
    injects an event, or takes back, remaps, swaps or aliases the first page; then the guest writes
    to the page and reads it. Each instruction is a run of its own, about a millisecond long.

    Exit status 1: a check found what a guest must not do; the program that shows it is printed.

    For example:

      guestemu outcomes attacks --image 6.12 --attack remap --every 100

      guestemu outcomes attacks --image 7.3 --sev tdx --every 1 --json

      guestemu outcomes attacks --attack remap --every 1 --results attacks.jsonl

      guestemu outcomes attacks --image 6.12 --image 7.3 --sev snp --sev tdx --page attacks.md
    """
    from guestemu.abi.json_lines import append_json_line
    from guestemu.cli._step_progress import StepProgress
    from guestemu.guest.linux.images import find_image
    from guestemu.study.outcomes.attack_runs import read_runs
    from guestemu.study.outcomes.attacks import (
        OPERATIONS,
        AttackedKernel,
        attacks_of,
        attacks_page,
        check_attacks,
        places_in,
    )

    kinds = tuple(sev or ("snp",))
    check_attacks(attack or (), kinds)
    asked = images or _DEFAULT
    paths = [find_image(image) for image in asked]
    todo = [
        (name, path, kind, operation, one)
        for name, path in zip(asked, paths, strict=True)
        for kind in kinds
        for operation in OPERATIONS
        for one in attacks_of(kind)
        if not attack or one in attack
    ]
    rows: list[AttackRow] = []
    kernel: AttackedKernel | None = None
    interrupted = False
    known = {} if results is None else read_runs(results)
    note = None if results is None else partial(append_json_line, results)
    try:
        with StepProgress(len(todo)) as progress:
            for name, path, kind, operation, one in todo:
                if kernel is None or (kernel.name, kernel.kind) != (name, kind):
                    kernel = AttackedKernel(name, path, kind)
                places = places_in(kernel.instructions(operation), every, first)
                if not places:
                    raise InputError(f"--first {first}: the conversion has fewer instructions")
                runs = known.get((name, kind, operation, one), ())
                rows.append(kernel.row(operation, one, places, runs, note))
                progress.advance()
    except KeyboardInterrupt:
        interrupted = True  # the rows that are done are shown
    if page is not None and not interrupted:
        write_atomically(page, attacks_page(rows, every).encode(), "--page")
    if as_json:
        console.emit_json({"rows": rows, "interrupted": interrupted})
    elif page is not None:
        console.emit(f"{page}: {sum(sum(row.outcomes.values()) for row in rows)} runs")
    else:
        _tell(rows)
    if interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if any(row.is_wrong for row in rows) else EXIT_OK


def _tell(rows: list[AttackRow]) -> None:
    from guestemu.study.outcomes.attacks import outcome_words

    console.emit_table(
        ("kernel", "kind", "conversion", "attack", "outcomes"),
        [(row.kernel, row.kind, row.operation, row.attack, outcome_words(row)) for row in rows],
    )
    for row in rows:
        if row.is_wrong:
            console.emit()
            console.emit_text(row.program.rstrip())
