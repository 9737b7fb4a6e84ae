# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu race`: a program with a migration, guest and host side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson, GuestName, HostName, Plugins, ProgramPath
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

GROUP: Final = "Migration"
ORDER: Final = 20


def command(
    program: ProgramPath,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.html", help="Also write it as an HTML page."),
    ] = None,
    guest: GuestName = None,
    host: HostName = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> int:
    """Draw a migration as a race of guest and host.

    Two lanes, the guest's steps on the left, the host's on the right, with the passes of the
    migration as bands and what each step changed. The program is run, then run in parts: the step
    is marked after which nothing that the host still does saves the page.

    Exit status 1: a page is lost, or another check failed.

    For example:

      guestemu race corpora/migration/status-before-dirty-s1.prog

      guestemu race examples/demo/forgotten-error.prog -o race.html
    """
    from guestemu.cli._program import Overrides, load
    from guestemu.report.trace.races import race_document, race_of
    from guestemu.report.trace.words import is_finding, run_word

    loaded = load(program, Overrides(guest, host, plugins=tuple(plugins or ())))
    race, run = race_of(loaded)
    if output is not None:
        console.write_document(output, race_document(str(program), race, run), "-o")
    if as_json:
        console.emit_json({"outcome": run_word(run), "race": race})
    else:
        from guestemu.report.race import race_lines

        console.emit_lines(race_lines(race, not console.has_unicode()))
    return EXIT_FINDINGS if is_finding(run_word(run)) else EXIT_OK
