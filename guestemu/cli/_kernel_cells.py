# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel defects` and `guestemu kernel matrix` do: kernels times experiments."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from guestemu.abi.errors import InputError
from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.report.document import Document
    from guestemu.report.matrix import Tried
    from guestemu.study.outcomes.cells import Cell, Key


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
    """Every defect (of `only`, if there are some) on every kernel."""
    from guestemu.study.outcomes.cells import Key
    from guestemu.study.outcomes.defects import DEFECTS

    wanted = _choose([defect.name for defect in DEFECTS], only)
    keys = [Key("sev", defect.name) for defect in DEFECTS if defect.name in wanted]
    for name, image in images_of(names):
        yield from _measured(name, image, keys)


def matrix(names: Sequence[str], only: Sequence[str]) -> Iterator[Cell]:
    """Every verb (of `only`, if there are some) on every kernel."""
    from guestemu.study.outcomes.verbs import VERBS, outcome_of

    wanted = _choose([verb.name for verb in VERBS], only)
    verbs = {verb.key: verb.name for verb in VERBS if verb.name in wanted}
    for name, image in images_of(names):
        for cell in _measured(name, image, list(verbs)):
            yield msgspec.structs.replace(cell, row=verbs[cell.key], outcome=outcome_of(cell))


def _measured(name: str, image: Path, keys: Sequence[Key]) -> list[Cell]:
    """The cells of `keys` on a kernel, in their order: kept ones, and what has to be measured."""
    from guestemu.guest.linux.load import LOADER
    from guestemu.study.outcomes.experiments import KernelTask, measure_all
    from guestemu.study.outcomes.store import CellStore

    kernel = LOADER.kernel(image)
    if not kernel.version:
        raise InputError(f"{image}: has no version")
    found = {}
    for cell in measure_all(KernelTask(name, image), keys, CellStore(kernel.digest), jobs=1):
        console.note(f"{name}: {cell.row}")
        found[cell.key] = cell
    return [found[key] for key in keys]


def _choose(names: Sequence[str], only: Sequence[str]) -> Sequence[str]:
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: there is {', '.join(names)}")
    return only or names


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


def document(verb: str, cells: Sequence[Cell]) -> Document:
    """The cells of `guestemu kernel VERB` as a matrix."""
    from guestemu.report.matrix import matrix_document

    words = "Each cell was measured on that kernel, unmodified; it leads to what was seen."
    return matrix_document(f"guestemu kernel {verb}", words, _tried(verb, cells), _VALUES)


def tell(verb: str, cells: Sequence[Cell]) -> None:
    """For people: of several kernels the matrix, then a line for each cell."""
    if len({cell.kernel for cell in cells}) > 1:
        console.emit_document(document(verb, cells))
        console.emit()
    columns = ("kernel", "row", "outcome", "detail")
    console.emit_table(
        columns, [(cell.kernel, cell.row, cell.outcome, cell.detail) for cell in cells]
    )


def write_line(path: Path, image: str, cells: Sequence[Cell]) -> None:
    """Puts a line for the kernel `image` into the page's table of `guestemu kernel test`: for each
    guest kind how many cells are right, a known defect and wrong; the names of those defects and
    rows. Raises `InputError`."""
    from guestemu.study.outcomes.cells import ABSENT, update
    from guestemu.study.outcomes.experiments import KNOWN_DEFECT, RIGHT, WRONG, verdict_of

    line = {}
    for kind in dict.fromkeys(cell.kind for cell in cells):
        verdicts = [verdict_of(cell) for cell in cells if cell.kind == kind]
        counts = [verdicts.count(one) for one in (RIGHT, KNOWN_DEFECT, WRONG)]
        line[kind] = " / ".join(map(str, counts)) if any(counts) else ABSENT
    line["known defects"] = ", ".join(sorted({cell.defect for cell in cells if cell.defect}))
    wrong = [f"{cell.key} ({cell.kind})" for cell in cells if verdict_of(cell) == WRONG]
    line["wrong"] = ", ".join(wrong)
    made = [
        msgspec.structs.replace(cells[0], kernel=image, row=row, outcome=words)
        for row, words in line.items()
    ]
    update(path, "guestemu kernel test", made, list(line))


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
