# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes table`: every answer of MapGPA and ACCEPT on TDX guests."""

from __future__ import annotations

from guestemu.cli import console
from guestemu.cli._options import AsJson, Guests, Html
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK


def command(
    guests: Guests = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Run 67 conversions of a TDX guest against scripted answers.

    The guest is reset before each row. Prints the value for each answer of MapGPA and each failure
    of ACCEPT; a page (--html) and --json also have page-table entries, page states and the next
    store.

    Exit status 1 where guests differ, 0 where all agree.

    For example:

      guestemu outcomes table --guest snippet:6.12 --html conversions.html

      guestemu outcomes table --guest snippet:6.12 --guest linux:7.3 --json
    """
    from guestemu.cli._step_progress import StepProgress
    from guestemu.study.outcomes.guests import chosen_guests
    from guestemu.study.outcomes.td_rows import ROWS
    from guestemu.study.outcomes.td_table import table_of
    from guestemu.study.outcomes.tried import conversions_document

    chosen = chosen_guests(guests)
    tables = {}
    with StepProgress(len(chosen) * len(ROWS)) as progress:
        for name in chosen:
            tables[name] = table_of(name, progress.advance)
    document = conversions_document(tables)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json({"tables": tables})
    else:
        console.emit_document(document)
    first = tables[chosen[0]]
    return EXIT_OK if all(table == first for table in tables.values()) else EXIT_FINDINGS
