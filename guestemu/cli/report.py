# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu report`: a campaign as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson, Plugins

GROUP: Final = "Search"
ORDER: Final = 60


def command(
    workdir: Annotated[
        Path, typer.Argument(metavar="WORKDIR", help="A campaign.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT.html", help="The page.", show_default=False),
    ],
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write a campaign as one HTML page.

    A card for each finding: what is wrong, whose defect it is, the strip, the smallest program, the
    command that shows it again. Behind them rate, corpus, coverage and findings over time. Programs
    of findings run once more for the page; it fetches nothing.

    For example:

      guestemu report guestemu-work/hypercall -o hypercall.html

      guestemu report found -o found.html --plugins .
    """
    from guestemu.campaign.document import campaign_document
    from guestemu.campaign.readings import read_campaign
    from guestemu.campaign.triage.cards import cards_of
    from guestemu.cli._step_progress import StepProgress
    from guestemu.cli.status import campaign_object
    from guestemu.host.permission import permissions

    reading = read_campaign(workdir)
    with StepProgress(len(reading.findings)) as progress:
        cards = cards_of(workdir, reading.findings, permissions(plugins), progress.advance)
    console.write_document(output, campaign_document(reading, cards), "-o")
    if as_json:
        console.emit_json({"output": str(output), **campaign_object(reading)})
    else:
        console.emit(str(output))
