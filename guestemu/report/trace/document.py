# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program's operations did, as a document: `guestemu run` and `guestemu show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from guestemu.abi.names import plural
from guestemu.events.exits import HypercallExit
from guestemu.events.lines import Line
from guestemu.program.op_text import format_op
from guestemu.program.ops import SPECS
from guestemu.report.document import Bullets, Chapter, Content, Document, Item, Paragraph, Picture
from guestemu.report.trace.calltree import TreeLine
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import Run
from guestemu.report.trace.shown import CodeLine, ShownOp
from guestemu.report.trace.summary import tell_op
from guestemu.report.trace.words import run_word

_STYLES: Final = {"ok": "green", "oops": "yellow"}
_INDENT: Final = 5
"""Columns of an operation's number."""


def run_document(run: Run, events: Sequence[Line]) -> Document:
    """A run step by step, the strip after its first violation, its result. `events` are those of
    the run."""
    contents: list[Content] = [_step(run, index) for index in range(len(run.program.ops))]
    if run.strip is not None:
        contents += [
            Paragraph(f"after {run.strip.op}  {run.strip.after}", "bold"),
            Picture("What guest and host say", run.strip),
        ]
    return Document(_setting(run), lead=(*contents, _result(run, events)))


def _setting(run: Run) -> str:
    header = run.program.header
    repaired = f" with {', '.join(header.switches)} repaired" if header.switches else ""
    return (
        f"{header.guest} on {header.host}{repaired}, "
        f"C-bit {header.cbit}, {header.memory} MiB, {header.vcpus} vCPU"
    )


def _result(run: Run, events: Sequence[Line]) -> Item:
    word = run_word(run)
    hypercalls = sum(
        isinstance(record, HypercallExit)
        for result in run.outcome.results
        for record in result.exits
    )
    text = (
        f": {plural(len(run.outcome.violations), 'violation')}, "
        f"{plural(hypercalls, 'hypercall')}, trace {trace_hash(events)[:16]}"
    )
    return Item(text, (), _STYLES.get(word, "red"), word)


def _step(run: Run, index: int, *before: Content, behind: Sequence[Content] = ()) -> Item:
    """Operation `index` with what it did and violated, between other contents."""
    told = tell_op(run, index)
    violations = (
        Item(f"! {first}", tuple(map(Paragraph, rest)), "red") for first, *rest in told.violations
    )
    contents = (*before, Bullets(told.lines), *violations, *behind)
    return Item(f"{index:>3}  {format_op(run.program.ops[index])}", contents, "bold", "", _INDENT)


def show_document(name: str, run: Run, shown: Sequence[ShownOp]) -> Document:
    """Each operation of the program `name` that ran, with the guest's code that it ran."""
    return Document(
        f"{name}: {_setting(run)}",
        tuple(Chapter("", (_shown_step(run, index, op),)) for index, op in enumerate(shown)),
    )


def _shown_step(run: Run, index: int, shown: ShownOp) -> Item:
    effect = SPECS[run.program.ops[index].kind].help
    return _step(run, index, Bullets((effect,), "dim"), behind=tuple(_code(shown)))


def _code(shown: ShownOp) -> Iterator[Content]:
    if shown.strip is not None:
        yield Picture("What guest and host say", shown.strip)
    calls = Bullets(tuple(map(_call, shown.calls)))
    if shown.instructions:
        yield Item(f"  {shown.instructions} instructions:", (calls,))
    if shown.code:
        lines = Bullets(tuple(map(_instruction, shown.code)))
        yield Item("  first instructions:", (lines,))


def _call(line: TreeLine) -> str:
    indent = "  " * line.depth
    if not line.name:
        return f"{indent}{line.times} times:"
    times = f" ({line.times} times)" if line.times > 1 else ""
    return f"{indent}{'* ' if line.is_site else ''}{line.name}{times}"


def _instruction(code: CodeLine) -> str:
    site = f"  * {code.site}" if code.site else ""
    return f"{code.where:<34} {code.text}{site}"
