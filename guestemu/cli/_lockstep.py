# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu run --host A,B,...`: the program on each host, and where what they mean differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from guestemu.abi.names import plural
from guestemu.cli import console
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.program.program import Program
    from guestemu.replay.lockstep.compare import Divergence
    from guestemu.replay.lockstep.run import LockstepRun
    from guestemu.report.document import Document, Item
    from guestemu.report.trace.run import Run


def command(
    program: Program, hosts: str | None, trace: Path | None, limit: float | None, as_json: bool
) -> int:
    """Runs `program` on every host of `hosts` (comma-separated; None: its own and those that its
    header has beside it), each for `limit` seconds, and prints what differs.

    Raises `InputError` for a bad list, and for a trace, which is of one run.
    """
    from guestemu.abi.errors import InputError
    from guestemu.replay.lockstep.run import choices_beside, choices_of, run_lockstep
    from guestemu.report.trace.words import is_finding, run_word

    if trace is not None:
        raise InputError(f"--trace {trace}: a trace is of one run; name one host")
    choices = choices_beside(program.header) if hosts is None else choices_of(hosts, program.header)
    found = run_lockstep(program, choices, limit)
    if as_json:
        console.emit_json(_object(found), "lockstep")
    else:
        console.emit_document(_document(found))
    findings = any(is_finding(run_word(run)) for run in found.runs)
    return EXIT_FINDINGS if found.divergences or findings else EXIT_OK


def _object(found: LockstepRun) -> dict[str, object]:
    from guestemu.cli.run import run_object
    from guestemu.report.trace.derive import events_of

    return {
        "outcome": "diverged" if found.divergences else "ok",
        "runs": [
            {"host": run.program.header.host, "switches": run.program.header.switches}
            | run_object(run, list(events_of(run)))
            for run in found.runs
        ],
        "divergences": [
            {
                "op": d.op,
                "hosts": d.hosts,
                "aspect": d.aspect,
                "values": d.values,
                "explained": d.is_explained,
                "known": d.known,
                "fact": d.fact,
                "reason": d.reason,
            }
            for d in found.divergences
        ],
    }


def _document(found: LockstepRun) -> Document:
    """For people: the hosts, then each operation with what they mean differently."""
    from guestemu.program.op_text import format_op
    from guestemu.report.document import Document, Item, Paragraph

    program = found.runs[0].program
    hosts = (Paragraph(f"    {_run_line(run)}") for run in found.runs)
    steps = (
        Item(
            f"{index:>3}  {format_op(op)}",
            tuple(_divergence(one) for one in found.divergences if one.op == index),
            "bold",
            indent=5,
        )
        for index, op in enumerate(program.ops)
    )
    total = len(found.divergences)
    unexplained = sum(not divergence.is_explained for divergence in found.divergences)
    style = "red" if unexplained else "yellow" if total else "green"
    text = f": {plural(total, 'divergence')}, {unexplained} of them unexplained"
    result = Item(text, (), style, "diverged" if total else "ok")
    title = f"{program.header.guest}, {len(found.runs)} hosts"
    return Document(title, lead=(*hosts, *steps, result))


def _run_line(run: Run) -> str:
    from guestemu.report.trace.words import run_word

    header = run.program.header
    repaired = f" with {', '.join(header.switches)} repaired" if header.switches else ""
    checks = dict.fromkeys(violation.check for violation in run.outcome.violations)
    violated = f" ({', '.join(checks)})" if checks else ""
    return f"{header.host}{repaired}: {run_word(run)}{violated}"


def _divergence(divergence: Divergence) -> Item:
    from guestemu.report.document import Item, Paragraph

    (one, other), (left, right) = divergence.hosts, divergence.values
    why = Paragraph("unexplained", "red")
    if divergence.is_explained:
        why = Paragraph(f"{divergence.reason} ({divergence.fact})")
    return Item(f"{divergence.aspect}: {one}: {left}; {other}: {right}", (why,))
