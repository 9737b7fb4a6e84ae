# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes snp`: every answer to a page-state change on real SNP guests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guestemu.abi.errors import InputError
from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_OK

_DEFAULT = ("6.1", "6.12", "6.18", "7.3")


def command(
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="PATH",
            help="A kernel image or a fetched series; repeatable.  [default: 6.1, 6.12, 6.18, 7.3]",
            show_default=False,
            autocompletion=names.images,
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE.md", help="Write the page there.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show what SNP kernels do with each answer of user space to a page-state change.

    By MSR protocol at boot and later, and by the GHCB's buffer; on a KVM that takes every answer
    but 0 for an error (6.12) and on one that lets KVM_RUN fail (7.2).

    For example:

      guestemu outcomes snp --image 6.12

      guestemu outcomes snp --page docs/snp.md
    """
    from guestemu.cli._step_progress import StepProgress
    from guestemu.guest.linux.images import find_image
    from guestemu.study.outcomes.snp_answers import count_of, run_answers, snp_page

    if page is not None and not page.parent.is_dir():
        raise InputError(f"{page}: no such directory; make it first")
    paths = [find_image(image) for image in images or _DEFAULT]
    cells = []
    with StepProgress(count_of(len(paths))) as progress:
        for path in paths:
            cells += list(run_answers(path, progress.advance))
    if page is not None:
        page.write_text(snp_page(cells), encoding="utf-8")
    if as_json:
        console.emit_json({"answers": cells})
    elif page is None:
        for cell in cells:
            console.emit(f"{cell.kernel} {cell.way} {cell.answer}, KVM {cell.kvm}: {cell.did}")
    else:
        console.emit(f"{page}: {len(cells)} runs")
    return EXIT_OK
