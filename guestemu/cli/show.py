# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu show`: a program explained, with the guest code that each operation ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import (
    AsJson,
    CBit,
    Faults,
    GuestName,
    HostName,
    Limit,
    Memory,
    Plugins,
    ProgramPath,
    Sev,
    memory_of,
)
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.report.trace.run import Run
    from guestemu.report.trace.shown import ShownOp

GROUP: Final = "Start"
ORDER: Final = 50


def command(
    program: ProgramPath,
    instructions: Annotated[
        int,
        typer.Option(
            "--instructions", "-n", metavar="N", min=0, help="Also list the first N instructions."
        ),
    ] = 0,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=1, help="Levels of calls to show.")
    ] = 4,
    guest: GuestName = None,
    host: HostName = None,
    sev: Sev = None,
    cbit: CBit = None,
    memory: Memory = None,
    fault: Faults = None,
    plugins: Plugins = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> int:
    """Explain a program down to the guest's code.

    For each operation: what it did, and the guest functions that did it. Calls are indented under
    their caller; page-table stores, TLB flushes, hypercalls and MSR accesses are marked with *.

    Exit status 0: nothing wrong; 1: a check failed or the run did not get to its end.

    For example:

      guestemu show corpora/conversion/split-failure-6.1.prog

      guestemu show -n 40 --depth 2 my.prog
    """
    from guestemu.cli._program import Overrides, load
    from guestemu.report.trace.document import show_document
    from guestemu.report.trace.shown import show_program
    from guestemu.report.trace.words import is_finding, run_word

    allowed = tuple(plugins or ())
    size, layout = memory_of(memory)
    loaded = load(
        program,
        Overrides(
            guest=guest,
            host=host,
            sev=sev,
            cbit=cbit,
            memory=size,
            faults=tuple(fault or ()),
            plugins=allowed,
            layout=layout,
        ),
    )
    run, shown = show_program(loaded, depth, instructions, limit)
    if as_json:
        console.emit_json({"ops": [_object(run, index, op) for index, op in enumerate(shown)]})
    else:
        console.emit_document(show_document(str(program), run, shown))
    return EXIT_FINDINGS if is_finding(run_word(run)) else EXIT_OK


def _object(run: Run, index: int, shown: ShownOp) -> dict[str, object]:
    from guestemu.program.op_text import format_op
    from guestemu.program.ops import SPECS
    from guestemu.report.trace.summary import tell_op
    from guestemu.report.trace.words import VM_STOPPED, op_word, value_of

    op = run.program.ops[index]
    results = run.outcome.results
    result = results[index] if index < len(results) else None
    told = tell_op(run, index)
    return {
        "op": format_op(op),
        "effect": SPECS[op.kind].help,
        "outcome": VM_STOPPED if result is None else op_word(result.outcome),
        "value": None if result is None else value_of(result.op, result.outcome),
        "steps": told.lines,
        "violations": [lines[0] for lines in told.violations],
        "instructions": shown.instructions,
        "calls": shown.calls,
        "code": shown.code,
        "strip": shown.strip,
    }
