# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu claims`: the claims of the mailing-list debate, tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.files import write_atomically
from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._options import AsJson, Html
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestemu.study.claims.claim import Claim, Lab
    from guestemu.study.claims.debate import Decided

GROUP: Final = "Study"
ORDER: Final = 10


def command(
    idents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID",
            help="Claims such as C2 or C3b; all by default.",
            autocompletion=names.claims,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/claims.md.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option("--plots", metavar="DIR", help="Write the plots of C9 to C12 there, as SVG."),
    ] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Test what was claimed about SEV live migration.

    Each claim has an experiment; its verdict (confirmed, refuted, true only if ...) is computed
    from what was measured. Without an ID all are tested and listed; with IDs the evidence, a
    witness and the command that shows it are also printed. Claims about real kernels run on those
    that `guestemu kernel fetch` has fetched, and take some seconds for each.

    Exit status 1: the outcome of an experiment fits no verdict; 3: a claim asked for by its ID
    needs a kernel and none was fetched.

    For example:

      guestemu claims

      guestemu claims C2 C13

      guestemu claims --json C31

      guestemu claims --plots plots C9 C11

      guestemu claims C2 C13 --html claims.html
    """
    from guestemu.study.claims.claim import Lab
    from guestemu.study.claims.debate import can_run, find_claims
    from guestemu.study.claims.kernels import found_kernels

    if markdown and as_json:
        raise InputError("claims: --markdown and --json are two forms of one result; give one")
    claims = find_claims(idents or ())
    lab = Lab(found_kernels())
    skipped = [claim for claim in claims if not can_run(claim, lab)]
    if skipped and idents:
        names = ", ".join(claim.ident for claim in skipped)
        raise MissingError(f"claims: {names} needs a kernel image; run `guestemu kernel fetch`")
    runnable = [claim for claim in claims if can_run(claim, lab)]
    if plots is not None:
        _make_directory(plots)
    decided = _run(runnable, lab)
    if plots is not None:
        _write_plots(decided, plots)
    if html is not None:
        from guestemu.study.claims.document import claims_document

        console.write_document(html, claims_document(decided))
    _show(decided, skipped, bool(idents), markdown, as_json)
    if len(decided) < len(runnable):
        return EXIT_INTERRUPTED
    return EXIT_OK if all(each.is_decided for each in decided) else EXIT_FINDINGS


def _run(claims: Sequence[Claim], lab: Lab) -> list[Decided]:
    """Runs the experiments; after Ctrl-C those that are done, the present one (a second Ctrl-C:
    not that) among them. An interrupt inside a hook of the emulated CPU would be lost."""
    from guestemu.cli._interrupts import Interrupts
    from guestemu.cli._step_progress import StepProgress
    from guestemu.study.claims.debate import decide_claim

    decided: list[Decided] = []
    with StepProgress(len(claims)) as progress, Interrupts() as interrupts:
        try:
            for claim in claims:
                interrupts.hold()
                decided.append(decide_claim(claim, lab))
                progress.advance()
                interrupts.release()
        except KeyboardInterrupt:
            pass  # what was found is printed, the exit status says that it is not all
    return decided


def _make_directory(path: Path) -> None:
    """Made first, so that a bad path fails early."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--plots {path}: {error.strerror}; give a directory") from None


def _write_plots(decided: Sequence[Decided], directory: Path) -> None:
    from guestemu.study.claims.report import file_name

    for plot in (plot for each in decided for plot in each.result.plots):
        path = directory / file_name(plot)
        write_atomically(path, plot.svg.encode(), "--plots")


def _show(
    decided: Sequence[Decided],
    skipped: Sequence[Claim],
    with_evidence: bool,
    markdown: bool,
    as_json: bool,
) -> None:
    from guestemu.report.race import race_lines
    from guestemu.study.claims.page import page
    from guestemu.study.claims.report import lines, report

    if as_json:
        console.emit_json(report(decided, skipped))
        return
    if markdown:
        console.emit_text(page(decided, skipped).rstrip())
    elif with_evidence:
        for number, each in enumerate(decided):
            if number:
                console.emit()
            for line in lines(each):
                console.emit(line)
            for witness in each.result.witnesses:
                if witness.race is not None:
                    console.emit_lines(race_lines(witness.race, not console.has_unicode()))
    else:
        _list(decided)
    if skipped:
        names = ", ".join(claim.ident for claim in skipped)
        console.note(f"not tested without a kernel image: {names}; run `guestemu kernel fetch`")


def _list(decided: Sequence[Decided]) -> None:
    from collections import Counter

    rows = [
        (each.claim.ident, each.result.verdict.value, each.claim.text.replace("\n", " "))
        for each in decided
    ]
    console.emit_table(("claim", "verdict", "statement"), rows)
    counts = Counter(each.result.verdict.value for each in decided)
    seconds = sum(each.seconds for each in decided)
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    console.note(f"{len(decided)} claims in {seconds:.1f} s: {words}")
