# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of proposals and pages: each cell is a program that ran, and what came of it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from guestemu.abi.addresses import to_signed
from guestemu.abi.errno import EFAULT
from guestemu.host.mirror.world import SKIPPED
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Expectation, Header, Program
from guestemu.program.text import format_text
from guestemu.runner.testbed import Outcome, Testbed, build_testbed
from guestemu.study.mirror.cases import CASES, PAGE, VALUE, Naming, PageCase

GUEST: Final = "snippet:6.1"

_REPEAT: Final = 0x0101_0101_0101_0101


class Fate(enum.StrEnum):
    """What became of a page."""

    RIGHT = "right"
    """It is at the destination what it was."""
    KEPT = "kept"
    """It did not travel: the destination's firmware has its own."""
    REFUSED = "refused"
    """The migration failed before anything was lost."""
    CORRUPTED = "corrupted"
    """It, another page or the handler was lost, and some VMM went on."""


class NamingCell(msgspec.Struct, frozen=True):
    """One cell: its witness as the text of a program, and the reason in words."""

    naming: str
    page: str
    fate: Fate
    reason: str
    program: str


def fill_of(value: int) -> int:
    """What a load of 8 bytes gives from a page that is filled with one byte."""
    return value * _REPEAT


def witness(naming: Naming, case: PageCase) -> Program:
    """The program of a cell: the guest fills the page, the VMMs move it, the guest loads it."""
    place, page = int(case.place), PAGE
    ops = [Op(OpKind.MIRROR_SETUP, (int(naming.proposal), int(case.other_build)))]
    if case.is_guests:
        ops.append(Op(OpKind.MIRROR_WRITE, (place, page, VALUE, 0)))
    ops.append(Op(OpKind.MIRROR_MIGRATE, (place, page)))
    ops.append(Op(OpKind.MIRROR_LOAD, (place, page)))
    header = Header(guest=GUEST, host=naming.host, switches=naming.switches)
    return Program(header, tuple(map(canonical_op, ops)))


def judge(case: PageCase, outcome: Outcome) -> tuple[Fate, str]:
    """What a run of a witness shows, and why."""
    if outcome.violations:
        return Fate.CORRUPTED, "; ".join(one.message for one in outcome.violations)
    moved, loaded = (result.outcome.value or 0 for result in outcome.results[-2:])
    moved = to_signed(moved, 64)
    if moved == SKIPPED:
        return Fate.KEPT, "it does not travel; the destination's firmware has its own"
    if moved == -EFAULT:
        return Fate.REFUSED, "the page has no such address; the VMM stops"
    if moved:
        return Fate.REFUSED, "the handler refuses a page of its own"
    if case.is_guests and loaded != fill_of(VALUE):
        return Fate.CORRUPTED, f"the guest loads {loaded:#x} at the destination"
    return Fate.RIGHT, "the destination holds the source's bytes"


def cells(namings: Iterable[Naming], cases: Iterable[PageCase] = CASES) -> Iterator[NamingCell]:
    """Runs every cell, row by row. Raises what `build_testbed` raises."""
    columns = tuple(cases)
    for naming in namings:
        testbed: Testbed | None = None
        try:
            for case in columns:
                program = witness(naming, case)
                testbed = testbed or build_testbed(program.header)
                outcome = testbed.run(program.ops)
                fate, reason = judge(case, outcome)
                yield NamingCell(
                    naming.name, case.name, fate, reason, _text(program, outcome, naming, case)
                )
        finally:
            if testbed is not None:
                testbed.close()


def _text(program: Program, outcome: Outcome, naming: Naming, case: PageCase) -> str:
    last = len(program.ops) - 1
    comment = f"Named by {naming.name}; page: {case.name}."
    return annotated(program, outcome, (last - 1, last), comment)


def annotated(program: Program, outcome: Outcome, places: Iterable[int], comment: str) -> str:
    """A program as text that expects what `outcome` shows: no hypercalls, all violations and the
    results of the ops at `places`."""
    expected = [Expectation("outcome", "ok" if outcome.is_ok else "violation")]
    expected.append(Expectation("hypercalls", "0"))
    expected += [Expectation("violation", one.check, one.op) for one in outcome.violations]
    for place in places:
        value = outcome.results[place].outcome.value or 0
        expected.append(Expectation("result", str(to_signed(value, 64)), place))
    return format_text(msgspec.structs.replace(program, expectations=tuple(expected)), comment)
