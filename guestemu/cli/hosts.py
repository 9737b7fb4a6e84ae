# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu hosts`: what answers guests, and whether a host of the user's own does it right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestemu.host.registry import HostEntry
    from guestemu.report.document import Document

GROUP: Final = "Regression"
ORDER: Final = 30


def command(
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="FILE.py:CLASS", help="Run the conformance suite on this host."
        ),
    ] = None,
    include: Annotated[
        bool,
        typer.Option("--include", help="Print the directory of guestemu_host.h and stop."),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """List the hosts, or check one of your own.

    The names are for --host and for program headers. A host may be given as NAME, as NAME:KERNEL,
    as FILE.py:CLASS, a class with the interface of guestemu.host.base.Host, or as FILE.so or
    cmd:COMMAND, a VMM's exit handler behind guestemu_host.h. Repairs are the
    defects that a header's `switches` turn off. With --check, exit status 1 means that a check of
    the suite failed.

    For example:

      guestemu hosts --check my_host.py:MyHost
      guestemu hosts --check ./my_vmm.so
    """
    if include:
        return _include(as_json)
    return _list(as_json) if check is None else _check(check, as_json)


def _list(as_json: bool) -> int:
    from guestemu.host.registry import hosts

    found = hosts()
    if as_json:
        console.emit_json({"hosts": found})
        return EXIT_OK
    console.emit_document(_document(found))
    return EXIT_OK


def _document(found: Iterable[HostEntry]) -> Document:
    from guestemu.report.document import Document, Item, Paragraph

    items = []
    for entry in found:
        more = []
        if entry.kernels:
            more.append(Paragraph(f"kernels: {', '.join(entry.kernels)}"))
        if entry.switches:
            more.append(Paragraph(f"repairs: {', '.join(entry.switches)}"))
        items.append(Item(f": {entry.summary}", tuple(more), "bold", entry.name, 4))
    return Document("", lead=tuple(items))


def _include(as_json: bool) -> int:
    from importlib.resources import files

    directory = str(files("guestemu.host.native"))
    if as_json:
        console.emit_json({"include": directory})
    else:
        console.emit(directory)
    return EXIT_OK


def _check(spec: str, as_json: bool) -> int:
    from guestemu.conformance.hosts import CHECKS, check_host
    from guestemu.host.permission import named_by_user
    from guestemu.host.registry import load_host
    from guestemu.report.document import Document, Item, Paragraph

    failures = check_host(load_host(spec, plugin=named_by_user(spec)[1]))
    if as_json:
        console.emit_json({"host": spec, "checks": sorted(CHECKS), "failures": failures}, "check")
    else:
        failed = {failure.check for failure in failures}
        count = f"{spec}: {len(CHECKS)} checks, {len(CHECKS) - len(failed)} passed"
        wrong = (
            Item(f": {failure.message}", (), "red", f"FAILED {failure.check}")
            for failure in failures
        )
        console.emit_document(Document("", lead=(*wrong, Paragraph(count))))
    return EXIT_FINDINGS if failures else EXIT_OK
