# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing expectations: a run becomes the `expect` lines of its program's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from guestemu.abi.errors import InputError
from guestemu.events.exits import HypercallExit
from guestemu.program.expectation_text import KEYWORD, format_expectation
from guestemu.program.ops import OpKind
from guestemu.program.program import Expectation
from guestemu.replay.expectations import NONE, exception_of
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import Run
from guestemu.report.trace.words import is_load, run_word, value_of


def expectations_of(run: Run, with_hash: bool = False) -> tuple[Expectation, ...]:
    """What a later run should give: outcome, violations, number of hypercalls, and each
    operation's value, exception and warnings; `with_hash`: also the trace hash."""
    return tuple(_lines(run, with_hash))


def _lines(run: Run, with_hash: bool) -> Iterator[Expectation]:
    yield Expectation("outcome", run_word(run))
    found = dict.fromkeys((v.check, v.op) for v in run.outcome.violations)
    for check, op in found:
        yield Expectation("violation", check, op)
    records = [record for result in run.outcome.results for record in result.exits]
    yield Expectation("hypercalls", str(sum(isinstance(r, HypercallExit) for r in records)))
    for index, result in enumerate(run.outcome.results):
        value = value_of(result.op, result.outcome)
        if value is not None:
            name = "value" if is_load(result.op) else "result"
            text = f"{value:#x}" if is_load(result.op) or value > 0xFFFF else str(value)
            yield Expectation(name, text, index)
        vector = exception_of(result)
        if vector is not None:
            yield Expectation("exception", str(vector), index)
        elif result.op.kind is OpKind.WRMSR:
            yield Expectation("exception", NONE, index)
        for name in dict.fromkeys(result.outcome.warnings):
            yield Expectation("warning", name, index)
    if with_hash:
        yield Expectation("trace_hash", trace_hash(events_of(run)))


def record(path: Path, run: Run) -> bool:
    """Replaces the `expect` lines of the file at `path`, from which `run`'s program was read, by
    those of `run` and keeps every other line; True if the file changed.

    A trace hash is recorded where one was. Raises `InputError` when the file cannot be written.
    """
    with_hash = any(line.name == "trace_hash" for line in run.program.expectations)
    try:
        old = path.read_text(encoding="utf-8")
        kept = [line for line in old.splitlines() if line.split()[:1] != [KEYWORD]]
        while kept and not kept[-1].strip():
            kept.pop()
        lines = map(format_expectation, expectations_of(run, with_hash))
        new = "\n".join([*kept, "", *lines]) + "\n"
        if new != old:
            path.write_text(new, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot record: {error.strerror}; make the file writable"
        ) from error
    return new != old
