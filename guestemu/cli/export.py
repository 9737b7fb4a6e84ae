# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu export`: a program as a test in C for a real KVM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.errors import InputError
from guestemu.abi.files import write_atomically
from guestemu.cli import console
from guestemu.cli._options import AsJson, GuestName, HostName, Plugins, ProgramPath
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_MISSING, EXIT_OK

if TYPE_CHECKING:
    from guestemu.export.real_kvm import SelftestRun

GROUP: Final = "Regression"
ORDER: Final = 40

_STATUSES: Final = {0: EXIT_OK, 4: EXIT_MISSING}


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
    run: Annotated[
        str,
        typer.Option(
            "--run",
            metavar="KERNEL",
            help="Also run it on the KVM of this kernel, under QEMU's TCG: a fetched series such "
            "as 6.12, a package or a bzImage.",
            show_default=False,
        ),
    ] = "",
    guest: GuestName = None,
    host: HostName = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> int:
    """Write a program as a test in C for a real KVM.

    The program is run once. Its hypercalls and MSR accesses become a small guest, and their answers
    the values that this guest has to read. The C file compiles alone.

    With --run the exit status is 1 where the test fails, 3 where it is skipped. QEMU and a C
    compiler that makes static programs are needed for it, no hardware virtualization. A
    kvm-unit-test is run without its framework, as the guest of a small VMM.

    For example:

      guestemu export corpora/conversion/round-trip-6.1.prog -o round-trip.c

      guestemu export crash.prog --as kvm-unit-test > x86/crash.c

      guestemu export corpora/conversion/round-trip-6.1.prog --run 6.12 -o round-trip.c

      guestemu export crash.prog --as kvm-unit-test --run 7.3
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
        write_atomically(output, text.encode(), "-o")
    ended = _run(form, text, run) if run else None
    if as_json:
        path = None if output is None else str(output)
        told = {"form": form, "steps": steps, "path": path, "source": text}
        console.emit_json(told if ended is None else {**told, "run": ended})
    else:
        if output is None and ended is None:
            console.emit_text(text)
        elif output is not None:
            console.emit(f"{output}: {len(steps)} steps; cc -O2 -Wall -o test {output}")
        for line in () if ended is None else ended.lines:
            console.emit(line)
    return EXIT_OK if ended is None else _STATUSES.get(ended.status, EXIT_FINDINGS)


def _run(form: str, source: str, image: str) -> SelftestRun:
    from guestemu.export.real_kvm import run_test
    from guestemu.oracle.image import find_kernel

    kernel = find_kernel(image)
    console.note(f"booting {kernel.name} under QEMU")
    return run_test(form, source, kernel)
