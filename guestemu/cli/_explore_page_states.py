# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore page-states`: an SNP guest's round trip against a hostile hypervisor."""

from __future__ import annotations

from typing import Annotated

import typer

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK


def page_states(
    guest: Annotated[
        list[str] | None,
        typer.Option(
            "--guest",
            metavar="CODE",
            help="linux, no-rescind, forgives-double, vc-validates (repeatable); default: all.",
            show_default=False,
        ),
    ] = None,
    acts: Annotated[
        int, typer.Option("--acts", metavar="N", min=0, max=3, help="Attacks in each sequence.")
    ] = 2,
    as_json: AsJson = False,
) -> int:
    """Merge an SNP guest's conversions with its hypervisor's attacks in every way.

    One page becomes shared and private again (PVALIDATE, page-state change, C-bit, a store; and
    back), and is read. Between any two steps the hypervisor takes the page back, assigns, remaps,
    swaps or aliases it, N times. Linux's order loses nothing; three changed guests show what each
    rule is for. With 3 attacks a guest has 112,640 sequences and takes seconds.

    Exit status 1: a sequence ends with two validated frames, or with content that the guest did not
    write.

    For example:

      guestemu explore page-states

      guestemu explore page-states --guest linux --acts 3

      guestemu explore page-states --guest no-rescind --acts 1 --json
    """
    from guestemu.migration.model.page_states import GUESTS, PageStatesResult, explore_page_states
    from guestemu.report.explore import page_states_document

    known = {code.name: code for code in GUESTS}
    for name in guest or ():
        if name not in known:
            raise InputError(f"--guest {name}: {nearest(name, known)}")
    results: list[PageStatesResult] = []
    interrupted = False
    try:
        results.extend(explore_page_states(known[name], acts) for name in guest or known)
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        console.emit_json({"guests": results, "interrupted": interrupted})
    else:
        console.emit_document(page_states_document(results))
    if interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if any(one.is_broken for one in results) else EXIT_OK
