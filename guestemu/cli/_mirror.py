# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore mirror`: address proposals for migration handlers, page by page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guestemu.abi.errors import InputError
from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestemu.mirror.table import Cell


def mirror(
    defects: Annotated[
        bool,
        typer.Option("--defects", help="Also handlers and VMMs with a known defect."),
    ] = False,
    programs: Annotated[
        Path | None,
        typer.Option(
            "--programs", metavar="DIR", help="Write the witness of each cell there, as a .prog."
        ),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Tell the reason of each cell.")] = False,
    as_json: AsJson = False,
) -> int:
    """What becomes of each kind of page under each address proposal for migration handlers.

    A guest with a PCI hole, hot-plugged memory, memory that was unplugged with its content in
    place, and a VMSA that it does not map leaves through a handler in a mirror VM. Pages are named
    by GPA, as in the prototype, or as the three proposals on the mailing list say. right: the
    destination holds the source's bytes. kept: the page does not travel, the destination's firmware
    has its own. refused: the migration fails before anything is lost. corrupted: something is lost.

    Exit status 1: some page was corrupted.

    For example:

      guestemu explore mirror

      guestemu explore mirror --defects --why

      guestemu explore mirror --programs witnesses --json
    """
    from guestemu.mirror.cases import DEFECTIVE, NAMINGS
    from guestemu.mirror.table import Fate, cells

    found: list[Cell] = []
    interrupted = False
    try:
        found.extend(cells((*NAMINGS, *DEFECTIVE) if defects else NAMINGS))
    except KeyboardInterrupt:
        interrupted = True
    if programs is not None:
        _write(programs, found)
    if as_json:
        console.emit_json({"cells": found, "interrupted": interrupted})
    else:
        _tell(found, why)
    if interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if any(cell.fate == Fate.CORRUPTED for cell in found) else EXIT_OK


def _tell(found: Sequence[Cell], why: bool) -> None:
    pages = list(dict.fromkeys(cell.page for cell in found))
    fates = {(cell.naming, cell.page): cell.fate for cell in found}
    rows = [
        (naming, *(fates.get((naming, page), "") for page in pages))
        for naming in dict.fromkeys(cell.naming for cell in found)
    ]
    console.emit_table(("named by", *pages), rows)
    if why:
        for cell in found:
            console.emit(f"{cell.naming}, {cell.page}: {cell.fate}: {cell.reason}")


def _write(directory: Path, found: Sequence[Cell]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for cell in found:
            name = re.sub(r"[^a-z0-9]+", "-", f"{cell.naming} {cell.page}".lower()).strip("-")
            (directory / f"{name}.prog").write_text(cell.program)
    except OSError as error:
        raise InputError(f"--programs {directory}: {error.strerror}; give a directory") from None
