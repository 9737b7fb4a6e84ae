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
    from collections.abc import Mapping

    from guestemu.study.mirror.noticed import ThreatCell
    from guestemu.study.mirror.table import NamingCell


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
    threats: Annotated[
        bool,
        typer.Option("--threats", help="Instead: attacks, who notices them, and what is lost."),
    ] = False,
    why: Annotated[bool, typer.Option("--why", help="Print the reason of each cell.")] = False,
    as_json: AsJson = False,
) -> int:
    """What becomes of each kind of page under each address proposal for migration handlers.

    A guest with a PCI hole, hot-plugged memory, memory that was unplugged with its content in
    place, and a VMSA that it does not map leaves through a handler in a mirror VM. Pages are named
    by GPA, as in the prototype, or as the three proposals on the mailing list say. right: the
    destination holds the source's bytes. kept: the page does not travel, the destination's firmware
    has its own. refused: the migration fails before anything is lost. corrupted: something is lost.

    With --threats the rows are attacks of a VMM, of the network or of the guest itself, the columns
    handlers: packets bound to page and order, packets that are not, and the prototype's handler.
    Each cell names who notices (handler, VMM or nobody); * marks a loss.

    Exit status 1: a page was corrupted, or lost unnoticed.

    For example:

      guestemu explore mirror

      guestemu explore mirror --defects --why

      guestemu explore mirror --programs witnesses --json

      guestemu explore mirror --threats --why
    """
    if threats:
        if defects:
            raise InputError(
                "explore mirror: --threats has the prototype's defects; drop --defects"
            )
        return _threats(programs, why, as_json)
    from guestemu.study.mirror.cases import DEFECTIVE, NAMINGS
    from guestemu.study.mirror.document import namings_document
    from guestemu.study.mirror.table import Fate, cells

    found: list[NamingCell] = []
    interrupted = False
    try:
        found.extend(cells((*NAMINGS, *DEFECTIVE) if defects else NAMINGS))
    except KeyboardInterrupt:
        interrupted = True
    if programs is not None:
        _write(programs, {f"{cell.naming} {cell.page}": cell.program for cell in found})
    if as_json:
        console.emit_json({"cells": found, "interrupted": interrupted})
    else:
        console.emit_document(namings_document(found, why))
    if interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if any(cell.fate == Fate.CORRUPTED for cell in found) else EXIT_OK


def _threats(programs: Path | None, why: bool, as_json: bool) -> int:
    """`--threats`."""
    from guestemu.study.mirror.document import threats_document
    from guestemu.study.mirror.noticed import threat_cells
    from guestemu.study.mirror.threats import HANDLERS, THREATS

    found: list[ThreatCell] = []
    interrupted = False
    try:
        found.extend(threat_cells(HANDLERS, THREATS))
    except KeyboardInterrupt:
        interrupted = True
    if programs is not None:
        _write(programs, {f"{cell.handlers} {cell.threat}": cell.program for cell in found})
    if as_json:
        console.emit_json({"threats": found, "interrupted": interrupted}, "threats")
    else:
        console.emit_document(threats_document(found, why))
    if interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if any(cell.lost for cell in found) else EXIT_OK


def _write(directory: Path, found: Mapping[str, str]) -> None:
    """Programs by name, as files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for title, program in found.items():
            name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
            (directory / f"{name}.prog").write_text(program)
    except OSError as error:
        raise InputError(f"--programs {directory}: {error.strerror}; give a directory") from None
