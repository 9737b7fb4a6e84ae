# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu report`: a campaign as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson

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
    as_json: AsJson = False,
) -> None:
    """Write a campaign as one HTML page.

    Rate, corpus, coverage and findings over time, coverage by kind, and each finding's program with
    its explanation. The page has no script and fetches nothing.

    For example:

      guestemu report guestemu-work/hypercall -o hypercall.html
    """
    from guestemu.campaign.page import report_page
    from guestemu.campaign.readings import read_campaign
    from guestemu.campaign.store import write_atomically
    from guestemu.cli.status import campaign_object

    reading = read_campaign(workdir)
    write_atomically(output, report_page(reading).encode(), "-o")
    if as_json:
        console.emit_json({"output": str(output), **campaign_object(reading)})
    else:
        console.emit(str(output))
