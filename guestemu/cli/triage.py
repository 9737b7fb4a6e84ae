# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu triage`: what campaigns found, by cause."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson, Plugins
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INPUT, EXIT_OK

GROUP: Final = "Search"
ORDER: Final = 30


def command(
    workdirs: Annotated[
        list[Path],
        typer.Argument(metavar="WORKDIR...", help="Campaigns.", show_default=False),
    ],
    write: Annotated[
        bool,
        typer.Option("--write/--no-write", help="Put KEY.md and test_KEY.py beside each program."),
    ] = True,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> int:
    """Group findings by cause, and explain each.

    Each finding's program runs again on the present host, so a repaired defect is shown as gone.
    Beside each program go KEY.md (what was expected, by which fact, what happened, the guest's
    code) and test_KEY.py, which fails as long as the defect is there.

    Exit status 0: no finding shows (any more); 1: findings; 2: a program could not be run.

    For example:

      guestemu triage guestemu-work/hypercall

      guestemu triage day1 day2 --no-write --json
    """
    from guestemu.campaign.triage.document import triage_document
    from guestemu.campaign.triage.triage import programs_in, triage
    from guestemu.cli._step_progress import StepProgress
    from guestemu.host.permission import permissions

    with StepProgress(programs_in(workdirs)) as progress:
        found = triage(workdirs, write, permissions(plugins), progress.advance)
    if as_json:
        console.emit_json({"findings": found})
    else:
        console.emit_document(triage_document(found))
    if any(entry.state.startswith("error") for entry in found):
        return EXIT_INPUT
    return EXIT_FINDINGS if any(entry.state != "gone" for entry in found) else EXIT_OK
