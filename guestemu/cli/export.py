# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu export`: a program as a test in C for a real KVM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.abi.errors import InputError
from guestemu.cli import console
from guestemu.cli._options import AsJson, GuestName, HostName, Plugins, ProgramPath

GROUP: Final = "Regression"
ORDER: Final = 40


def command(
    program: ProgramPath,
    form: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORM",
            help="kvm-selftest (a program with a VMM in it, for /dev/kvm) or kvm-unit-test (for "
            "x86/ of kvm-unit-tests).",
        ),
    ] = "kvm-selftest",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.c", help="Write it there instead of stdout."),
    ] = None,
    guest: GuestName = None,
    host: HostName = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write a program as a test in C for a real KVM.

    The program is run once. What a KVM sees of it, its hypercalls and MSR accesses with their
    answers, becomes a guest of a few instructions and what it has to read. The C compiles alone.

    For example:

      guestemu export corpora/conversion/round-trip-6.1.prog -o round-trip.c

      guestemu export crash.prog --as kvm-unit-test > x86/crash.c
    """
    from guestemu.cli._program import Overrides, load
    from guestemu.export.c_source import FORMS, c_source
    from guestemu.export.steps import steps_of

    if form not in FORMS:
        raise InputError(f"--as {form}: take one of {', '.join(FORMS)}")
    loaded = load(program, Overrides(guest, host, plugins=tuple(plugins or ())))
    try:
        steps = steps_of(loaded)
    except InputError as error:
        raise InputError(f"{program}: {error}") from None
    title = f"{program.name}: {loaded.header.guest} on {loaded.header.host}, by guestemu export."
    text = c_source(form, title, steps)
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    if as_json:
        path = None if output is None else str(output)
        console.emit_json({"form": form, "steps": steps, "path": path, "source": text})
    elif output is None:
        console.emit_text(text)
    else:
        console.emit(f"{output}: {len(steps)} steps; cc -O2 -Wall -o test {output}")
