# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu outcomes snp`: every answer to a page-state change on real SNP guests."""

from __future__ import annotations

from typing import Annotated

from guestemu.abi.files import write_atomically
from guestemu.cli import console
from guestemu.cli._options import AsJson, Html, PageFile, image_option
from guestemu.cli.errors import EXIT_OK

_DEFAULT = ("6.1", "6.12", "6.18", "7.3")


def command(
    images: Annotated[list[str] | None, image_option("6.1, 6.12, 6.18, 7.3")] = None,
    page: PageFile = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Show what SNP kernels do with each answer of user space to a page-state change.

    By MSR protocol at boot and later, and by the GHCB's buffer; on a KVM that takes every answer
    but 0 for an error (6.12) and on one that lets KVM_RUN fail (7.2).

    For example:

      guestemu outcomes snp --image 6.12 --html snp.html

      guestemu outcomes snp --page docs/snp.md
    """
    from guestemu.cli._step_progress import StepProgress
    from guestemu.guest.linux.images import find_image
    from guestemu.study.outcomes.snp_answers import SnpAnswer, count_of, run_answers, snp_page
    from guestemu.study.outcomes.tried import answers_document

    asked = images or _DEFAULT
    paths = [find_image(image) for image in asked]
    cells: list[SnpAnswer] = []
    names: dict[str, str] = {}
    with StepProgress(count_of(len(paths))) as progress:
        for name, path in zip(asked, paths, strict=True):
            found = list(run_answers(path, progress.advance))
            names |= {cell.kernel: name for cell in found}
            cells += found
    if page is not None:
        write_atomically(page, snp_page(cells).encode(), "--page")
    document = answers_document(cells, names)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json({"answers": cells})
    elif page is None:
        console.emit_document(document)
    else:
        console.emit(f"{page}: {len(cells)} runs")
    return EXIT_OK
