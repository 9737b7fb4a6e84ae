# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program did, in words that do not depend on where a guest put its regions."""

from __future__ import annotations

from guestemu.events.base import kind_of
from guestemu.events.exits import HypercallExit
from guestemu.guest.base import GuestOops
from guestemu.machine.exits import BudgetExhausted
from guestemu.program.op_text import format_op
from guestemu.program.ops import REGIONS, Op, OpKind, Region
from guestemu.report.trace.places import Places
from guestemu.runner.testbed import OpResult, Testbed

INIT = Op(OpKind.INIT_PLATFORM, (0,))
EARLY = (OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED)
PAGES = (OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED)
NO_COUNTERPART = frozenset({OpKind.INIT_PLATFORM, OpKind.DMA_ALLOC, OpKind.DMA_FREE})
"""The boot has run the first; the others take frames that each allocator chooses itself."""

MAX_EARLY = 0x20000
"""Bytes: 6.1 copies by REP MOVSB, which counts a block for each byte."""


def is_comparable(op: Op) -> bool:
    """Whether both guests have what `op` touches: what follows a region is not the same."""
    if op.kind in NO_COUNTERPART or op.kind > OpKind.TOUCH_CBIT or op.vcpu or op.region is Region.G:
        return False
    size = REGIONS[op.region].pages << 12
    if op.kind in PAGES:
        return (op.page + op.arguments[0]) << 12 <= size
    if op.kind in EARLY:
        return (op.page << 12) + sum(op.arguments) <= size and op.arguments[0] <= MAX_EARLY
    if op.kind is OpKind.WRITE:
        return (op.page << 12) + op.arguments[1] + op.arguments[2] <= size
    return True


def story(testbed: Testbed, ops: tuple[Op, ...]) -> list[tuple[object, ...]]:
    """One line for each op, up to the first that does not end."""
    places = Places(testbed.guest.regions)
    lines: list[tuple[object, ...]] = []
    for result in testbed.run(ops).results:
        lines.append((format_op(result.op), *_line(result, places)))
        if isinstance(result.outcome.end, BudgetExhausted):
            break
    return lines


def _line(result: OpResult, places: Places) -> tuple[object, ...]:
    outcome = result.outcome
    if isinstance(outcome.end, BudgetExhausted):
        return ("does not end",)
    end = (
        f"oops {outcome.end.vector}"
        if isinstance(outcome.end, GuestOops)
        else type(outcome.end).__name__
    )
    exits = [
        (
            kind_of(record),
            record.nr,
            places.address(record.args[0]) if isinstance(record, HypercallExit) else record.args,
            record.args[1:3],
            record.ret,
        )
        for record in result.exits
    ]
    flips = [(places.event(flip), flip.private) for flip in result.flips]
    order = [kind_of(event) for event in result.events]
    return _value(result), end, bool(outcome.warnings), exits, flips, order


def _value(result: OpResult) -> object:
    """A load through the wrong view gives the cipher's image, which depends on the address."""
    value = result.outcome.value
    if result.op.kind is not OpKind.READ or value is None:
        return value
    return "one byte" if len(set(value.to_bytes(8, "little"))) == 1 else "garbage"


def stories(
    snippet: Testbed, linux: Testbed, ops: tuple[Op, ...]
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The story of both; a booted kernel has done what the snippet does in init_platform."""
    return story(snippet, (INIT, *ops))[1:], story(linux, ops)
