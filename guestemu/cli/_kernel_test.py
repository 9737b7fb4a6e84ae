# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel test` does: the battery on one image, or on two side by side."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import GuestemuError, InputError
from guestemu.abi.names import plural
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK, one_line

if TYPE_CHECKING:
    from guestemu.report.document import Content, Document, Grid
    from guestemu.study.outcomes.cells import Cell, Key

EXIT_SKIP: Final = 125
"""The status by which `git bisect run` skips a commit that cannot be tested."""

_MAX_DETAIL: Final = 150
_NOTICEABLE: Final = 0.01
"""The part by which instruction counts have to differ to be shown."""


class Untestable(GuestemuError):
    """An image that cannot be tested; the text says why."""


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What to test, and how to judge it; `jobs` processes (0: as many as there are CPUs).

    `is_strict`: known defects count; they do where rows are chosen by `only`.
    """

    image: str
    against: str = ""
    only: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    is_strict: bool = False
    jobs: int = 0

    @property
    def counts_known(self) -> bool:
        """Whether a known defect makes the status 1."""
        return self.is_strict or bool(self.only)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A cell of which two kernels say something else. `what` is "verdict" or one of the counts."""

    kind: str
    row: str
    answer: str
    what: str
    here: str
    there: str


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """One image tested, and what is different on the image `against`."""

    image: str
    version: str
    status: int
    seconds: float
    cells: tuple[Cell, ...]
    against: str = ""
    against_version: str = ""
    differences: tuple[Difference, ...] = ()


def examine(request: Examination) -> Examined:
    """Tests an image. Raises `Untestable`, and `InputError` for a row or kind that does not
    exist."""
    from guestemu.study.outcomes.experiments import choose

    keys = choose(request.only, request.kinds)
    start = time.monotonic()
    version, cells = _measure(request, request.image, keys)
    other, differences = "", tuple[Difference, ...]()
    if request.against:
        other, others = _measure(request, request.against, keys)
        differences = tuple(_differences(cells, others))
    return Examined(
        image=request.image or version,
        version=version,
        status=_status(cells, request.counts_known),
        seconds=round(time.monotonic() - start, 1),
        cells=tuple(cells),
        against=request.against,
        against_version=other,
        differences=differences,
    )


def _measure(request: Examination, image: str, keys: Sequence[Key]) -> tuple[str, list[Cell]]:
    """Version and cells of one image. Instructions are counted where two are compared."""
    from guestemu.cli._step_progress import StepProgress
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER
    from guestemu.study.outcomes.experiments import KernelTask, measure_all
    from guestemu.study.outcomes.store import CellStore

    try:
        path = find_image(image)
        kernel = LOADER.kernel(path)
    except GuestemuError as error:
        raise Untestable(str(error)) from error
    order = {key: index for index, key in enumerate(keys)}
    cells = []
    task = KernelTask(image or path.name, path, bool(request.against))
    jobs = request.jobs or os.cpu_count() or 1
    with StepProgress(len(keys)) as progress:
        for cell in measure_all(task, keys, CellStore(kernel.digest), jobs):
            cells.append(cell)
            progress.advance()
    _check_measured(path, cells)
    return kernel.version, sorted(cells, key=lambda cell: order[cell.key])


def _check_measured(path: Path, cells: Sequence[Cell]) -> None:
    """Raises `Untestable` where not one experiment could be made."""
    from guestemu.study.outcomes.cells import ABSENT, FAILED

    if any(cell.outcome not in {ABSENT, FAILED} for cell in cells):
        return
    reasons = dict.fromkeys(cell.detail for cell in cells)
    if any("did not reach" in reason for reason in reasons):
        _boot_again(path, cells[0].kind)
    raise Untestable(f"{path}: nothing could be measured: {'; '.join(list(reasons)[:2])}")


def _boot_again(path: Path, kind: str) -> None:
    """Shows the end of the console of a kernel that does not boot. Raises `Untestable`."""
    from guestemu.cli._kernel_boot import BootRequest, boot_image
    from guestemu.guest.linux.boot import BOOT_BUDGET, STOP_AT
    from guestemu.study.outcomes.experiments import BIT, MEMORY_MIB

    request = BootRequest(
        image=str(path),
        until=STOP_AT,
        memory=MEMORY_MIB,
        cbit=BIT,
        sev=kind,
        command_line="",
        budget=BOOT_BUDGET,
    )
    try:
        boot_image(request, show_console=False, to_stderr=True)
    except InputError as error:
        raise Untestable(str(error)) from error


def _status(cells: Iterable[Cell], counts_known: bool) -> int:
    from guestemu.study.outcomes.experiments import KNOWN_DEFECT, WRONG, verdict_of

    bad = {WRONG, KNOWN_DEFECT} if counts_known else {WRONG}
    return EXIT_FINDINGS if any(verdict_of(cell) in bad for cell in cells) else EXIT_OK


def _differences(here: Iterable[Cell], there: Iterable[Cell]) -> list[Difference]:
    others = {cell.key: cell for cell in there}
    found = []
    for cell in here:
        other = others[cell.key]
        pairs = [("verdict", _word(cell), _word(other))]
        counts = (
            ("hypercalls", cell.hypercalls, other.hypercalls, 0.0),
            ("instructions", cell.instructions, other.instructions, _NOTICEABLE),
        )
        for name, mine, theirs, part in counts:
            if mine is not None and theirs is not None and abs(mine - theirs) > part * theirs:
                pairs.append((name, str(mine), str(theirs)))
        kind, row, answer = cell.key
        found += [
            Difference(kind=kind, row=row, answer=answer, what=what, here=mine, there=theirs)
            for what, mine, theirs in pairs
            if mine != theirs
        ]
    return found


def _word(cell: Cell) -> str:
    from guestemu.study.outcomes.experiments import verdict_of

    return f"{verdict_of(cell)} ({cell.defect})" if cell.defect else verdict_of(cell)


def as_object(report: Examined) -> dict[str, object]:
    """What --json prints: `report`, each cell with its verdict, of a known defect also since when
    and where."""
    from guestemu.study.outcomes.experiments import EXPERIMENTS, verdict_of
    from guestemu.study.outcomes.known import BY_NAME

    cells = []
    for cell in report.cells:
        known = BY_NAME.get(cell.defect)
        cells.append(
            {
                **msgspec.structs.asdict(cell),
                "verdict": verdict_of(cell),
                "entry": EXPERIMENTS[cell.key].entry,
                "since": known.since if known else "",
                "source": known.source if known else "",
            }
        )
    return {**msgspec.structs.asdict(report), "cells": cells}


def document(report: Examined, show_all: bool) -> Document:
    """Verdicts by kind, each known defect with its rows, what is wrong, what is different on the
    other image. Every row stands on a page, with `show_all` also in a terminal."""
    from guestemu.report.document import Bullets, Chapter, Document, Paragraph
    from guestemu.study.outcomes.experiments import KNOWN_DEFECT, WRONG, verdict_of

    known: dict[str, list[Cell]] = defaultdict(list)
    for cell in report.cells:
        if verdict_of(cell) == KNOWN_DEFECT:
            known[cell.defect].append(cell)
    wrong = [
        f"{cell.key} as {cell.kind}: {_short(cell.detail)}"
        for cell in report.cells
        if verdict_of(cell) == WRONG
    ]
    chapters = [Chapter("Every row", (_rows(report.cells),), is_page_only=not show_all)]
    if known:
        chapters.append(Chapter("Known defects", tuple(_known(known))))
    if wrong:
        chapters.append(Chapter("Wrong", (Bullets(tuple(wrong)),)))
    if report.against:
        title = f"Against {report.against_version} ({report.against})"
        chapters.append(Chapter(title, (_different(report),)))
    total = f"{plural(len(known), 'known defect')}, {len(wrong)} wrong"
    chapters.append(Chapter("", (Paragraph(f"{total}; exit status {report.status}"),)))
    title = f"{report.version}, {report.seconds} s"
    return Document(title, tuple(chapters), tuple(_kinds(report.cells)))


def _kinds(cells: Sequence[Cell]) -> Iterator[Content]:
    from guestemu.report.document import Grid, Paragraph
    from guestemu.study.outcomes.cells import ABSENT
    from guestemu.study.outcomes.experiments import KNOWN_DEFECT, RIGHT, WRONG, verdict_of

    verdicts = (RIGHT, KNOWN_DEFECT, WRONG, ABSENT)
    by_kind: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_kind[cell.kind].append(cell)
    rows: list[tuple[object, ...]] = []
    for kind, of_kind in by_kind.items():
        counted = [verdict_of(cell) for cell in of_kind]
        rows.append((kind, *(counted.count(verdict) for verdict in verdicts)))
    yield Grid(("kind", *verdicts), tuple(rows), "Verdicts")
    for kind, of_kind in by_kind.items():
        if all(cell.outcome == ABSENT for cell in of_kind):
            yield Paragraph(f"{kind}: {of_kind[0].detail}")


def _rows(cells: Iterable[Cell]) -> Grid:
    from guestemu.report.document import Grid
    from guestemu.report.page import TableCell
    from guestemu.study.outcomes.experiments import KNOWN_DEFECT, RIGHT, WRONG, verdict_of

    values = {RIGHT: "good", KNOWN_DEFECT: "warn", WRONG: "bad"}
    rows = tuple(
        (
            str(cell.key),
            cell.kind,
            TableCell(_word(cell), values.get(verdict_of(cell), "")),
            _short(cell.detail),
        )
        for cell in cells
    )
    return Grid(("row", "kind", "verdict", "detail"), rows, "Every row", is_words=True)


def _known(known: Mapping[str, Sequence[Cell]]) -> Iterator[Content]:
    from guestemu.report.document import Bullets, Item
    from guestemu.study.outcomes.known import BY_NAME

    for name, cells in known.items():
        defect = BY_NAME[name]
        places = f"since {defect.since}, {defect.source}; rows {_places(cells)}"
        yield Item(f"  {name}: {defect.sentence}", (Bullets((places,)),))


def _different(report: Examined) -> Content:
    from guestemu.report.document import Bullets, Grid
    from guestemu.study.outcomes.cells import Key

    if not report.differences:
        return Bullets(("no difference",))
    rows = tuple(
        (str(Key(one.kind, one.row, one.answer)), one.kind, one.what, one.here, one.there)
        for one in report.differences
    )
    return Grid(("row", "kind", "what", "tested", "against"), rows, "Differences", is_words=True)


def _places(cells: Iterable[Cell]) -> str:
    """Rows with the kinds in which they showed, answers of one row together."""
    by_row: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        by_row[cell.row][cell.kind] = None
    return ", ".join(f"{name} ({' '.join(kinds)})" for name, kinds in by_row.items())


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _MAX_DETAIL else line[: _MAX_DETAIL - 1] + "\N{HORIZONTAL ELLIPSIS}"
