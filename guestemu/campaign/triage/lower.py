# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings a program down to the exits it made: a host's defect shows with the exits alone.

Each guest operation becomes the raw hypercalls and MSR accesses that it made. If the host then
believes the same and fails in the same code, the defect is the host's and is shown by raw exits,
whichever kernel function led there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from guestemu.campaign.triage.probe import Look, Probe
from guestemu.events.exits import AnsweredExit, HypercallExit, WrmsrExit
from guestemu.program.ops import HOST_SPECS, VMM_SPECS, Op, OpKind, canonical_op
from guestemu.program.program import Program

LIMIT: Final = 1024
"""Exits of a program up to which it is brought down."""

_RAW: Final = frozenset({OpKind.HYPERCALL, OpKind.WRMSR, OpKind.RDMSR})
_ORDERS: Final = frozenset({OpKind.ANSWER, OpKind.FAIL_MSR, *HOST_SPECS, *VMM_SPECS})
_HOST: Final = "for the host"
_GUEST_ONLY: Final = frozenset({"frames", "progress", "free-pages"})


def _raw_op(record: AnsweredExit) -> Op:
    if isinstance(record, HypercallExit):
        return Op(OpKind.HYPERCALL, (record.nr, *record.args))
    if isinstance(record, WrmsrExit):
        return Op(OpKind.WRMSR, (record.nr, record.args[0]))
    return Op(OpKind.RDMSR, (record.nr,))


def _lowered(op: Op, exits: tuple[AnsweredExit, ...]) -> Iterator[Op]:
    if op.kind in _ORDERS:
        yield op
    elif op.kind not in _RAW:
        yield from map(_raw_op, exits)
    elif op.has_page and len(exits) == 1:
        arguments = (exits[0].nr, *exits[0].args)
        yield Op(
            op.kind,
            arguments,
            vcpu=op.vcpu,
            mode=op.mode,
            cpl=op.cpl,
            instruction=op.instruction,
        )
    else:
        yield op


def lower(probe: Probe, program: Program, look: Look) -> tuple[tuple[Op, ...], Look] | None:
    """The raw form of the program that `look` saw, looked at; None where it has none, or where the
    host does not go wrong in it and end up believing the same."""
    if sum(map(len, look.exits)) > LIMIT or len(look.exits) < len(program.ops):
        return None
    ops = tuple(
        canonical_op(raw)
        for op, exits in zip(program.ops, look.exits, strict=True)
        for raw in _lowered(op, exits)
    )
    if ops == program.ops:
        return None
    below = probe.try_look(ops, traced=True)
    if below is None or not below.sightings:
        return None
    if below.private != look.private or below.is_ready != look.is_ready:
        return None
    return ops, below


def is_guest_only(check: str, message: str) -> bool:
    """Whether a violation says nothing about the host."""
    if message.endswith(_HOST) or f"{_HOST}, " in message:
        return False
    return check in _GUEST_ONLY or message.startswith(("page tables", "alias mapping"))
