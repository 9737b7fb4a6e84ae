# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes findings`: what TDX guests of real kernels show."""

from __future__ import annotations

from typing import Annotated

import typer

from guestemu.abi.errors import InputError
from guestemu.cli import console
from guestemu.cli._options import AsJson, image_option
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK


def command(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this finding; repeatable."),
    ] = None,
    images: Annotated[list[str] | None, image_option("6.12")] = None,
    as_json: AsJson = False,
) -> int:
    """Show what a kernel does as a TDX guest that it should not.

    vmmcall: a host that advertises MIGRATION_CONTROL kills it at boot. refused-decryption: a
    decryption that the host refused cannot be undone. vmalloc: a vmalloc range is reported by a
    wrong address. swiotlb: a refused conversion at boot leaves it in use. cut: a conversion that
    KVM cut in pieces is reported as whole.

    Exit status 1 if one holds, 0 if none does.

    For example:

      guestemu outcomes findings --only vmmcall

      guestemu outcomes findings --image 6.12 --image 7.3 --json
    """
    from guestemu.guest.linux.images import find_image
    from guestemu.study.outcomes.td_findings import FINDINGS, run_finding

    known = {finding.name: finding for finding in FINDINGS}
    for name in only or ():
        if name not in known:
            raise InputError(f"--only {name}: no such finding; use one of {', '.join(known)}")
    paths = [find_image(image) for image in images or ["6.12"]]
    results = []
    for path in paths:
        for name in only or known:
            result = run_finding(known[name], path)
            results.append(result)
            if not as_json:
                verdict = "holds" if result.holds else "does not hold"
                console.emit(f"{result.name} on {result.kernel}: {verdict} ({result.facts})")
                for line in result.lines:
                    console.emit(f"  {line}")
    if as_json:
        console.emit_json({"findings": results})
    return EXIT_FINDINGS if any(result.holds for result in results) else EXIT_OK
