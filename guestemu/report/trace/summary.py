# SPDX-License-Identifier: GPL-2.0-or-later
"""A run described step by step, one list of lines for each operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from guestemu.abi.facts import cite
from guestemu.abi.hypercalls import (
    answer_text,
    attributes_text,
    hypercall_text,
    page_enc_text,
)
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.checks.page_enc import NUMBERS
from guestemu.events.base import Event, kind_of
from guestemu.events.exits import AnsweredExit, HypercallExit, MapGpaRangeExit, RdmsrExit, WrmsrExit
from guestemu.events.lines import answer_of
from guestemu.events.memory import LeafChange
from guestemu.events.operations import Violation
from guestemu.events.text import describe
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.host.registry import contract_of
from guestemu.machine.exits import ExceptionExit
from guestemu.report.trace.explain import explain
from guestemu.report.trace.places import Places
from guestemu.report.trace.run import Run
from guestemu.report.trace.words import is_load, op_word, value_of
from guestemu.runner.testbed import HOST_FAILED, TIME_UP, OpResult

MAX_LINES: Final = 12
"""Exits or page groups shown for one operation; the rest is counted."""

_ORIGINS: Final = {
    "psc-msr": "page-state change (MSR protocol)",
    "psc-buffer": "page-state change",
}


class Told(msgspec.Struct, frozen=True):
    """One operation described: `lines` of what happened and `violations`, each as its lines."""

    lines: tuple[str, ...]
    violations: tuple[tuple[str, ...], ...]


def tell_op(run: Run, index: int) -> Told:
    """What operation `index` of `run` did."""
    found = tuple(tell_violation(v, run.places) for v in run.outcome.violations if v.op == index)
    if index >= len(run.outcome.results):
        stop = run.stop
        text = stop.message if stop is not None and stop.op == index else "not run"
        if any(v.check in (HOST_FAILED, TIME_UP) and v.op == index for v in run.outcome.violations):
            return Told(("did not end",), found)
        return Told((f"VM stopped: {text}" if text != "not run" else text,), found)
    result = run.outcome.results[index]
    contract = contract_of(run.program.header.host)
    lines = [
        *_cut(_flip_lines(result, run.places), "groups of pages"),
        *_cut(list(_event_lines(result.events, run.places, contract)), "exits"),
        *(f"WARN {name}" for name in result.outcome.warnings),
        *_end_lines(result),
    ]
    return Told(tuple(lines), found)


def tell_violation(violation: Violation, places: Places) -> tuple[str, ...]:
    """The violation, what it means, and the facts it breaks: sentence and id."""
    first = f"violation of {violation.check}: {places.annotate(violation.message)}"
    meaning = explain(violation.check)
    facts = cite(violation.fact)
    return (first, *((meaning,) if meaning else ()), *((f"Rule: {facts}",) if facts else ()))


def _event_lines(events: Iterable[Event], places: Places, contract: str) -> Iterator[str]:
    """All but the changes of leaves, which are described together."""
    for event in events:
        if not isinstance(event, LeafChange):
            told = tell_exit(event, places, contract) if isinstance(event, AnsweredExit) else None
            yield describe(event, places.event) if told is None else told


def tell_exit(record: AnsweredExit, places: Places, contract: str = "") -> str | None:
    """One exit and its answer; None for a kind that has no words of its own.

    `contract` is the host's: hypercalls 11 and 12 mean something else to hosts from before 5.14.
    """
    ret = answer_of(record)
    if isinstance(record, RdmsrExit | WrmsrExit):
        answer = "an exception" if ret is None else f"{ret:#x}" if ret > 0xFFFF else f"{ret}"
        name = " MIGRATION_CONTROL" if record.nr == MSR_KVM_MIGRATION_CONTROL else ""
        value = f" = {record.args[0]:#x}" if record.args else ""
        if ret is not None and record.args:
            answer = "taken"
        return f"{kind_of(record)} {record.nr:#x}{name}{value} -> {answer}"
    if not isinstance(record, HypercallExit):
        return None
    where = "" if record.cpl == 0 else f" at CPL {record.cpl}"
    if not record.is_64bit:
        where += " in 32-bit code"
    place = places.address(record.args[0]) or ""
    if isinstance(record, MapGpaRangeExit):
        gpa, pages, attributes = record.args[:3]
        name = f" ({place})" if place else ""
        what = _ORIGINS.get(record.origin, record.origin)
        what += f" gpa={gpa:#x}{name} pages={pages} {attributes_text(attributes)}"
    elif record.nr == NUMBERS.get(contract):
        what = page_enc_text(record.nr, record.args, place)
    else:
        what = hypercall_text(record.nr, record.args, place)
    return f"{what}{where} -> {'an exception' if ret is None else answer_text(ret)}"


def _flip_lines(result: OpResult, places: Places) -> list[str]:
    lines = []
    for flip in _merged(result.flips):
        where = places.page(flip.gva, flip.gfn, flip.pages, flip.is_alias)
        status = "private" if flip.private else "shared"
        lines.append(f"{where} now {status} ({flip.pages} page{'s' if flip.pages > 1 else ''})")
    return lines


def _merged(flips: Iterable[LeafChange]) -> Iterator[LeafChange]:
    """Neighbouring flips of one direction as one."""
    last: LeafChange | None = None
    for flip in flips:
        if (
            last is not None
            and (last.private, last.is_alias) == (flip.private, flip.is_alias)
            and last.gfn + last.pages == flip.gfn
        ):
            last = msgspec.structs.replace(
                last, pages=last.pages + flip.pages, changed=last.changed + flip.changed
            )
            continue
        if last is not None:
            yield last
        last = flip
    if last is not None:
        yield last


def _end_lines(result: OpResult) -> list[str]:
    value = value_of(result.op, result.outcome)
    if value is not None:
        return [f"loaded {value:#x}" if is_load(result.op) else f"returned {_number(value)}"]
    if result.outcome.value is not None:
        return []
    return [_end_line(result.outcome)]


def _number(value: int) -> str:
    return f"{value:#x}" if value > 0xFFFF else f"{value}"


def _end_line(outcome: CallOutcome) -> str:
    end = outcome.end
    if isinstance(end, GuestOops | ExceptionExit):
        what = "oops" if isinstance(end, GuestOops) else "exception"
        code = "" if end.error_code is None else f", error code {end.error_code:#x}"
        address = f", address {end.cr2:#x}" if end.cr2 else ""
        return f"{what}: vector {end.vector}{code}{address} at {end.rip:#x}"
    return f"did not return: {op_word(outcome)}"


def _cut(lines: list[str], what: str) -> list[str]:
    if len(lines) <= MAX_LINES:
        return lines
    left = len(lines) - MAX_LINES + 1
    return [*lines[: MAX_LINES - 1], f"... and {left} more {what}"]
