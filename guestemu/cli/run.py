# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu run`: one program, printed step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from guestemu.abi.files import check_place
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
    Vcpus,
    memory_of,
)
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestemu.events.lines import Line
    from guestemu.report.trace.run import Run

GROUP: Final = "Start"
ORDER: Final = 40


def command(
    program: ProgramPath,
    guest: GuestName = None,
    host: HostName = None,
    sev: Sev = None,
    cbit: CBit = None,
    memory: Memory = None,
    vcpus: Vcpus = None,
    fault: Faults = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="OUT.jsonl", help="Write every event as a JSON line."),
    ] = None,
    plugins: Plugins = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> int:
    """Run one program and print what each operation did.

    Exit status 0: nothing wrong; 1: a check failed or the run did not get to its end. With several
    hosts in --host, or in the header's `beside`, the program runs on each; 1 also means that a host
    differs from the first.

    For example:

      guestemu run corpora/conversion/split-failure-6.1.prog

      guestemu run --guest snippet:5.17 --fault 'fail_split after=0' my.prog

      guestemu run --host my_host.py:MyHost --json my.prog

      guestemu run --host map-gpa-range,qemu-v4,bitmap-v8 my.prog
    """
    from guestemu.cli._program import Overrides, load
    from guestemu.report.trace.derive import events_of
    from guestemu.report.trace.document import run_document
    from guestemu.report.trace.jsonl import write_jsonl
    from guestemu.report.trace.run import run_program
    from guestemu.report.trace.words import is_finding, run_word

    _check_trace(trace)
    size, layout = memory_of(memory)
    chosen = Overrides(
        guest=guest,
        host=host,
        sev=sev,
        cbit=cbit,
        memory=size,
        faults=tuple(fault or ()),
        plugins=tuple(plugins or ()),
        vcpus=vcpus,
        layout=layout,
    )
    first, comma, _ = (host or "").partition(",")
    loaded = load(program, msgspec.structs.replace(chosen, host=first) if comma else chosen)
    if comma or loaded.header.beside:
        from guestemu.cli import _lockstep

        return _lockstep.command(loaded, host if comma else None, trace, limit, as_json)
    run = run_program(loaded, limit)
    events = list(events_of(run))
    if as_json:
        console.emit_json(run_object(run, events))
    else:
        console.emit_document(run_document(run, events))
    if trace is not None:
        write_jsonl(trace, loaded.header, events)
    return EXIT_FINDINGS if is_finding(run_word(run)) else EXIT_OK


def _check_trace(path: Path | None) -> None:
    from guestemu.abi.errors import InputError

    if path is None:
        return
    if path.suffix != ".jsonl":
        raise InputError(f"--trace {path}: traces are JSON lines; name the file OUT.jsonl")
    check_place(path, "--trace")


def run_object(run: Run, events: Sequence[Line]) -> dict[str, object]:
    """What `--json` says about one run."""
    from collections import Counter

    from guestemu.events.exits import HypercallExit
    from guestemu.events.lines import answer_of
    from guestemu.report.trace.digest import trace_hash
    from guestemu.report.trace.words import run_word

    return {
        "outcome": run_word(run),
        "violations": [
            {"check": v.check, "op": v.op, "message": v.message, "fact": v.fact}
            for v in run.outcome.violations
        ],
        "events": dict(sorted(Counter(str(line["event"]) for line in events).items())),
        "hypercalls": [
            {"op": op, "nr": r.nr, "args": r.args, "ret": answer_of(r)}
            for op, result in enumerate(run.outcome.results)
            for r in result.exits
            if isinstance(r, HypercallExit)
        ],
        "trace_hash": trace_hash(events),
        "stopped": run.stop,
        "strip": run.strip,
    }
