# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes page`: docs/tdx.md from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guestemu.abi.files import check_place, write_atomically
from guestemu.cli import console
from guestemu.cli.errors import EXIT_OK


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.md", help="Where to write it.", show_default=False)
    ] = Path("docs/tdx.md"),
) -> int:
    """Write the page of TDX guests from runs of all guests.

    Runs the table and the findings on the snippet and on every fetched kernel from 6.12 on; takes
    some minutes.

    For example:

      guestemu outcomes page docs/tdx.md
    """
    from guestemu.cli._step_progress import StepProgress
    from guestemu.guest.linux.images import find_image
    from guestemu.study.outcomes.guests import known_guests
    from guestemu.study.outcomes.page import td_page
    from guestemu.study.outcomes.td_findings import FINDINGS, run_finding
    from guestemu.study.outcomes.td_table import table_of

    check_place(file, "FILE.md")
    chosen = known_guests()
    series = [name.partition(":")[2] for name in chosen if name.startswith("linux:")]
    with StepProgress(len(chosen) + len(series) * len(FINDINGS)) as progress:
        tables = {}
        for name in chosen:
            tables[name] = table_of(name)
            progress.advance()
        findings = []
        for finding in FINDINGS:
            for kernel in series:
                findings.append(run_finding(finding, find_image(kernel)))
                progress.advance()
    write_atomically(file, td_page(tables, findings).encode(), "FILE.md")
    console.emit(f"{file}: {len(tables)} guests, {len(findings)} findings")
    return EXIT_OK
