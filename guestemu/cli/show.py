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
    from guestemu.report.trace.calltree import TreeLine
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
        for index, op in enumerate(shown):
            _tell(run, index, op)
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


def _tell(run: Run, index: int, shown: ShownOp) -> None:
    from guestemu.program.op_text import format_op
    from guestemu.program.ops import SPECS
    from guestemu.report.trace.summary import tell_op

    op = run.program.ops[index]
    told = tell_op(run, index)
    console.emit(console.paint(f"{index:>3}  {format_op(op)}", "bold"))
    console.emit(console.paint(f"       {SPECS[op.kind].help}", "dim"))
    for line in told.lines:
        console.emit(f"       {line}")
    for first, *rest in told.violations:
        console.emit(console.paint(f"     ! {first}", "red"))
        for line in rest:
            console.emit(f"       {line}")
    console.emit_strip(shown.strip, "  ")
    if shown.instructions:
        console.emit(f"       {shown.instructions} instructions:")
    for call in shown.calls:
        console.emit(f"         {_call(call)}")
    if shown.code:
        console.emit("       first instructions:")
    for code in shown.code:
        site = f"  * {code.site}" if code.site else ""
        console.emit(f"         {code.where:<34} {code.text}{site}")
    console.emit()


def _call(line: TreeLine) -> str:
    indent = "  " * line.depth
    if not line.name:
        return f"{indent}{line.times} times:"
    times = f" ({line.times} times)" if line.times > 1 else ""
    return f"{indent}{'* ' if line.is_site else ''}{line.name}{times}"
