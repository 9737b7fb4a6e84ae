# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel defects` and `guestemu kernel matrix` do: kernels times experiments."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.guest.linux.guest import LinuxGuest
    from guestemu.report.matrix import Tried
    from guestemu.study.outcomes.cells import Cell, Verdict


def images_of(names: Sequence[str]) -> list[tuple[str, Path]]:
    """The kernels of `names` (series or paths), or every fetched one: the newest of each series and
    flavour, oldest series first. Raises `InputError`, `MissingError`."""
    from guestemu.guest.linux.images import (
        DEFAULT_FLAVOUR,
        FLAVOURS,
        fetched_images,
        find_image,
        version_key,
    )

    if names:
        return [(name, find_image(name)) for name in names]
    found: dict[tuple[str, str], Path] = {}
    for image in fetched_images():
        found.setdefault((image.series, image.flavour), image.path)
    if not found:
        find_image("")
    order = sorted(found, key=lambda key: (version_key(key[0]), FLAVOURS.index(key[1])))
    return [
        (series if flavour == DEFAULT_FLAVOUR else f"{series}-{flavour}", found[series, flavour])
        for series, flavour in order
    ]


def defects(names: Sequence[str], only: Sequence[str]) -> Iterator[Cell]:
    """Measures every defect (of `only`, if there are some) on every kernel."""
    from guestemu.study.outcomes.defects import DEFECTS, measure

    wanted = _choose([defect.name for defect in DEFECTS], only)
    for name, image in images_of(names):
        for defect in DEFECTS:
            if defect.name in wanted:
                experiment = partial(_on_guest, image, partial(measure, defect=defect))
                yield _cell(name, image, defect.name, experiment)


def matrix(names: Sequence[str], only: Sequence[str]) -> Iterator[Cell]:
    """Tries every verb (of `only`, if there are some) on every kernel."""
    from guestemu.study.outcomes.verbs import VERBS

    wanted = _choose([verb.name for verb in VERBS], only)
    for name, image in images_of(names):
        for verb in VERBS:
            if verb.name in wanted:
                yield _cell(name, image, verb.name, partial(verb.measure, image))


def _choose(names: Sequence[str], only: Sequence[str]) -> Sequence[str]:
    from guestemu.abi.errors import InputError

    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: there is {', '.join(names)}")
    return only or names


def _on_guest(image: Path, experiment: Callable[[LinuxGuest], Verdict]) -> Verdict:
    from guestemu.study.outcomes.verbs import guest_of

    return experiment(guest_of(image))


def _cell(name: str, image: Path, row: str, experiment: Callable[[], Verdict]) -> Cell:
    from guestemu.study.outcomes.cells import Cell, judge
    from guestemu.study.outcomes.verbs import release

    console.note(f"{name}: {row}")
    verdict = judge(experiment)
    return Cell(
        kernel=name,
        version=release(image),
        row=row,
        outcome=verdict.outcome,
        detail=verdict.detail,
    )


_VALUES = {"seen": "bad", "not seen": "good", "ok": "good", "failed": "bad", "absent": "warn"}


def _tried(verb: str, cells: Sequence[Cell]) -> list[Tried]:
    from guestemu.report.matrix import Tried

    return [
        Tried(
            row=cell.row,
            column=cell.kernel,
            word=cell.outcome,
            detail=cell.detail,
            command=f"guestemu kernel {verb} {shlex.quote(cell.kernel)} --only {cell.row}",
        )
        for cell in cells
    ]


def write_page(path: Path, verb: str, cells: Sequence[Cell]) -> None:
    """The cells of `guestemu kernel VERB` as an HTML page. Raises `InputError`."""
    from guestemu.campaign.store import write_atomically
    from guestemu.report.matrix import matrix_page

    words = "Each cell was measured on that kernel, unmodified; it leads to what was seen."
    page = matrix_page(f"guestemu kernel {verb}", words, _tried(verb, cells), _VALUES)
    write_atomically(path, page.encode(), "--html")


def tell(cells: Sequence[Cell]) -> None:
    """For people: of several kernels a table of outcomes, then a line for each cell."""
    from guestemu.report.matrix import matrix_rows

    names, rows = matrix_rows(_tried("", cells))
    if len(names) > 1:
        console.emit_table(("row", *names), rows)
        console.emit()
    columns = ("kernel", "row", "outcome", "detail")
    console.emit_table(
        columns, [(cell.kernel, cell.row, cell.outcome, cell.detail) for cell in cells]
    )


def write_table(
    path: Path,
    command: str,
    cells: Sequence[Cell],
    rows: Sequence[str],
    findings: Path | None = None,
) -> None:
    """Puts the table of `cells` into a Markdown page, and sentences of it into the page `findings`.
    Raises `InputError`."""
    from guestemu.study.outcomes.cells import update, update_sentences
    from guestemu.study.outcomes.defects import NOT_SEEN, SEEN

    table = update(path, command, cells, rows)
    if findings is not None:
        update_sentences(findings, table, rows, (SEEN, NOT_SEEN))
