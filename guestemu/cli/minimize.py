# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu minimize`: the smallest program that still shows a finding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson, GuestName, HostName, Limit, Plugins, ProgramPath

GROUP: Final = "Search"
ORDER: Final = 40


def command(
    program: ProgramPath,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT.prog", help="Write it there instead of printing it."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Which finding, if the program shows several."),
    ] = None,
    guest: GuestName = None,
    host: HostName = None,
    plugins: Plugins = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Make a program as small as its finding allows.

    The smallest program stands for the defect: whatever program led to it, the result and its key
    are the same. Where raw hypercalls and MSR accesses show a host's defect, the result consists of
    them. Other findings of the program are named on stderr.

    For example:

      guestemu minimize crash.prog

      guestemu minimize crash.prog -o tests/small.prog --key record-hypercall-c9b772c1
    """
    from guestemu.abi.files import check_place, write_atomically
    from guestemu.campaign.triage.explain import comment_of, run_command
    from guestemu.campaign.triage.single import choose, findings_of
    from guestemu.cli._program import Overrides, load
    from guestemu.program.text import format_text

    if output is not None:
        check_place(output, "-o")
    loaded = load(program, Overrides(guest, host, plugins=tuple(plugins or ())))
    findings = findings_of(loaded, limit)
    chosen = choose(findings, key, str(program))
    smallest = chosen.program(loaded.header)
    place = "PROGRAM" if output is None else str(output)
    text = format_text(
        smallest, comment_of(chosen, str(program), run_command(place, loaded.header))
    )
    if output is not None:
        write_atomically(output, text.encode(), "-o")
    if as_json:
        console.emit_json(
            {
                "program": str(output or program),
                "key": chosen.key,
                "ops_before": len(loaded.ops),
                "ops_after": len(chosen.ops),
                "text": text,
                "others": [found.key for found in findings if found is not chosen],
            }
        )
        return
    others = ", ".join(found.key for found in findings if found is not chosen)
    if others:
        console.note(f"also shown: {others} (take one with --key)")
    console.note(f"{chosen.key}: {len(loaded.ops)} ops before, {len(chosen.ops)} after")
    if output is None:
        console.emit_text(text.rstrip("\n"))
