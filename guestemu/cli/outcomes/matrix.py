# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes matrix`: one answer under every guest kind."""

from __future__ import annotations

from guestemu.abi.files import write_atomically
from guestemu.cli import console
from guestemu.cli._options import AsJson, Guests, Html, PageFile
from guestemu.cli.errors import EXIT_OK


def command(
    guests: Guests = None,
    page: PageFile = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Run conversions under SEV, SEV-ES, SNP and TDX against one answer.

    ok: it succeeds and page table and host agree; told: the caller reads the failure; ends: the
    guest ends; lost: it reads success, and page table and host differ. A page (--html, --page) and
    --json also have what page table, host, RMP and Secure EPT hold afterwards; --page and --json
    have what follows a refusal in the middle of a range (claim C20).

    For example:

      guestemu outcomes matrix --guest snippet:6.12

      guestemu outcomes matrix --guest linux:6.12 --html kinds.html

      guestemu outcomes matrix --guest linux:6.12 --guest linux:7.3 --page kinds.md
    """
    from guestemu.cli._step_progress import StepProgress
    from guestemu.study.outcomes.guests import chosen_guests
    from guestemu.study.outcomes.matrix import KINDS, matrix_page, run_matrix
    from guestemu.study.outcomes.stops import run_stops, stop_lines
    from guestemu.study.outcomes.tried import kinds_document

    chosen = chosen_guests(guests)
    with StepProgress(2 * len(chosen) * len(KINDS)) as progress:
        cells = run_matrix(chosen, done=progress.advance)
        stops = run_stops(chosen, done=progress.advance)
    if page is not None:
        write_atomically(page, matrix_page(cells, stop_lines(stops)).encode(), "--page")
    document = kinds_document(cells)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json({"cells": cells, "stops": stops})
    elif page is not None:
        console.emit(f"{page}: {len(cells)} runs")
    else:
        console.emit_document(document)
    return EXIT_OK
