# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu ledger`: injected failures x flows x policies, who noticed, what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.errors import InputError, MissingError
from guestemu.cli import console
from guestemu.cli._options import AsJson, Html, sev_kind
from guestemu.cli.errors import EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestemu.report.document import Document
    from guestemu.study.ledger.cell import Row
    from guestemu.study.ledger.failures import Failure
    from guestemu.study.ledger.flows import Flow
    from guestemu.study.ledger.policies import LedgerRow

GROUP: Final = "Study"
ORDER: Final = 20


def command(
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="Only this policy; repeatable."),
    ] = None,
    flows: Annotated[
        list[str] | None,
        typer.Option("--flow", metavar="NAME", help="Only this flow; repeatable."),
    ] = None,
    failures: Annotated[
        list[str] | None,
        typer.Option("--failure", metavar="NAME", help="Only this failure; repeatable."),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also the real kernels that were fetched.")
    ] = False,
    sev: Annotated[
        str,
        typer.Option(
            "--sev",
            metavar="sev|es|snp|tdx",
            help="Kind of the guests; SNP, TDX: Linux's own ways.",
        ),
    ] = "sev",
    every_step: Annotated[
        bool,
        typer.Option("--every-step", help="Every step, where a flow has more than five of a kind."),
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Print every run, not only counts.")] = False,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Inject each failure under each policy, then migrate.

    Failures: host answers (-ENOSYS, -EINVAL, -EBUSY, garbage), #GP on MIGRATION_CONTROL, lookup,
    change of an entry, split, a hole, an entry without PRESENT. Policies: what the guest does with
    the error, as proposed in May 2021, and upstream's. Each run ends with a migration; `lost`
    counts the pages that are wrong at the destination, `noticed_by` says who can know.

    SNP guests and TDs (--sev) have no MIGRATION_CONTROL, and the answers are those of a page-state
    change or MapGPA: EAGAIN, EINVAL, -EINVAL, garbage. A host that refuses ends the one; the
    caller in the other gets an error.

    Exit status 0 whatever is lost; 3 if a real kernel was asked for and none was fetched.

    For example:

      guestemu ledger

      guestemu ledger --policy warn --policy bug --flow decrypt-3 --rows

      guestemu ledger --kernels --html ledger.html --json

      guestemu ledger --sev tdx --policy linux:7.3
    """
    from guestemu.guest.linux.images import fetched_images
    from guestemu.program.program import SevKind
    from guestemu.study.ledger.document import ledger_document
    from guestemu.study.ledger.flows import find_flows
    from guestemu.study.ledger.matrix import find_failures, plan
    from guestemu.study.ledger.policies import LINUX, find_policies
    from guestemu.study.outcomes.guests import has_kind

    kind = sev_kind(sev)
    wanted = tuple(policies or ())
    found: tuple[str, ...] = ()
    if kernels or any(name.startswith(LINUX) for name in wanted):
        found = tuple(dict.fromkeys(f"{LINUX}{image.series}" for image in fetched_images()))
        if not found:
            raise MissingError("ledger: no kernel image here; run `guestemu kernel fetch`")
        found = tuple(name for name in found if has_kind(name, sev))
        if not found:
            raise InputError(f"--sev {sev}: no fetched kernel runs as such a guest")
    if kernels and wanted:
        wanted = tuple(dict.fromkeys((*wanted, *found)))
    if kind is SevKind.SEV_ES and not found:
        raise InputError("--sev es: our own code has no SEV-ES; add --kernels")
    chosen = find_policies(wanted, found, sev)
    todo = plan(chosen, find_flows(tuple(flows or ())))
    if not todo:
        raise InputError("ledger: these flows need our own guests; leave out --policy linux:...")
    chosen_failures = find_failures(tuple(failures or ()), sev)
    result, is_whole = _run(todo, chosen_failures, every_step)
    document = ledger_document(
        result,
        chosen,
        shows_rows=rows,
        only={"flow": flows or (), "failure": failures or ()},
        options=("--sev", sev) * (sev != "sev") + ("--every-step",) * every_step,
    )
    _show(result, document, html, as_json, is_whole=is_whole, sev=sev)
    return EXIT_OK if is_whole else EXIT_INTERRUPTED


def _run(
    todo: Sequence[tuple[LedgerRow, Flow]], failures: Sequence[Failure], every_step: bool
) -> tuple[list[Row], bool]:
    """The rows, and whether they are all. After Ctrl-C those of the flows that are done, the
    present one among them; an interrupt inside a hook of the emulated CPU would be lost."""
    from guestemu.cli._interrupts import Interrupts
    from guestemu.cli._step_progress import StepProgress
    from guestemu.study.ledger.matrix import run_flow_rows
    from guestemu.study.ledger.rig import Rig

    rows: list[Row] = []
    rig: Rig | None = None
    with StepProgress(len(todo)) as progress, Interrupts() as interrupts:
        try:
            for policy, flow in todo:
                interrupts.hold()
                if rig is None or rig.policy is not policy:
                    if rig is not None:
                        rig.close()
                    rig = Rig(policy)
                rows += run_flow_rows(rig, flow, failures, every_step=every_step)
                progress.advance()
                interrupts.release()
        except KeyboardInterrupt:
            return rows, False
        finally:
            if rig is not None:
                rig.close()
    return rows, True


def _show(
    rows: Sequence[Row],
    document: Document,
    html: Path | None,
    as_json: bool,
    *,
    is_whole: bool,
    sev: str,
) -> None:
    from guestemu.study.ledger.summary import by_policy

    if html is not None:
        console.write_document(html, document)
    if as_json:
        summary = by_policy(rows)
        console.emit_json({"sev": sev, "rows": rows, "summary": summary, "complete": is_whole})
        return
    console.emit_document(document)
    if not is_whole:
        console.note("interrupted: not all flows were run")
