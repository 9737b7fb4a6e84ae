# SPDX-License-Identifier: GPL-2.0-or-later
"""Every program within small bounds, once; their number is known and reported.

The alphabet are the ops of the target with the first few values of each argument (the default, then
the edges of `program.values`), the first hot pages of each region, and 64-bit code at CPL 0 first
among the modes. Ops that the target's limits make equal count once. The space is every sequence of
1 to OPS letters, shortest first; worker i of n takes every n-th. How far a worker is goes into its
journal, so that `--resume` with the same bounds and jobs goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

from guestemu.abi.regions import Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.bounds import Bounds
from guestemu.campaign.engines.base import Leave
from guestemu.campaign.ranges import limit_op
from guestemu.campaign.session import Session, SessionOver
from guestemu.program.binary import encode_op
from guestemu.program.ops import SPECS, Op, OpKind, canonical_op
from guestemu.program.values import HOT_PAGES, palette_of

_POSTURES: Final = (
    (Mode.LONG64, 0),
    (Mode.LONG64, 3),
    *((mode, 0) for mode in Mode if mode is not Mode.LONG64),
    *((mode, 3) for mode in Mode if mode not in {Mode.LONG64, Mode.REAL16}),
)
_NOTE_EVERY: Final = 1024


class ExhaustiveEngine:
    """See the module's docstring."""

    name = "exhaustive"
    summary = "every program within --bounds, with the count of the space; ends by itself"
    remedy = ""

    def is_available(self) -> bool:
        """Always."""
        return True

    def run(self, session: Session, leave: Leave) -> None:
        """See `Engine.run`; also returns at the end of the space."""
        try:
            _run(session)
        except SessionOver:
            return


def _arguments_of(kind: OpKind, values: int) -> list[tuple[int, ...]]:
    """The values of each argument."""
    return [
        tuple(dict.fromkeys(palette_of(kind, position)))[:values]
        for position in range(len(SPECS[kind].arguments))
    ]


def _places(kind: OpKind, regions: list[Region], values: int) -> list[tuple[Region, int, bool]]:
    """Page operands: region, page, and for a hypercall whether it has one."""
    pages = [(region, page, True) for region in regions for page in HOT_PAGES[region][:values]]
    if kind is OpKind.HYPERCALL:
        return [(Region.D, 0, False), *pages]
    return pages if SPECS[kind].has_page else [(Region.D, 0, False)]


def alphabet(session: Session) -> list[bytes]:
    """The records of all ops within the session's bounds, each once."""
    values = session.plan.bounds.values
    target = session.plan.target
    is_limited = target.limit is not None and not target.order
    lawful = session.kinds.isdisjoint(target.fault_kinds)
    regions = sorted(session.executor.testbed.guest.regions)
    letters: dict[bytes, None] = {}
    for kind in sorted(session.kinds):
        postures = _POSTURES[:values] if SPECS[kind].has_mode else _POSTURES[:1]
        for place, posture, vcpu, arguments in product(
            _places(kind, regions, values),
            postures,
            range(min(session.plan.header.vcpus, values)),
            product(*_arguments_of(kind, values)),
        ):
            region, page, has_page = place
            op = canonical_op(Op(kind, arguments, region, page, has_page, vcpu, *posture))
            letters[encode_op(limit_op(op, lawful) if is_limited else op)] = None
    return list(letters)


def count_space(letters: int, ops: int) -> int:
    """Sequences of 1 to `ops` letters."""
    return sum(letters**length for length in range(1, ops + 1))


def program_at(letters: list[bytes], position: int) -> bytes:
    """The program at `position` of the space: shorter ones first, then as numbers count."""
    size = len(letters)
    length = 1
    while position >= size**length:
        position -= size**length
        length += 1
    chosen: list[bytes] = []
    for _ in range(length):
        position, digit = divmod(position, size)
        chosen.append(letters[digit])
    return b"".join(reversed(chosen))


def _name(bounds: Bounds, letters: int, jobs: int) -> str:
    return f"{bounds.ops},{bounds.values} of {letters} in {jobs}"


def _positions(session: Session, name: str, space: int) -> Iterator[int]:
    """The session's share of the space, from where the last one stopped."""
    jobs = session.plan.jobs
    first = max(session.last_position(name), session.plan.index)
    for count, position in enumerate(range(first, space, jobs)):
        if count % _NOTE_EVERY == 0:
            session.note_position(name, position)
        yield position


def _run(session: Session) -> None:
    letters = alphabet(session)
    bounds = session.plan.bounds
    session.space = space = count_space(len(letters), bounds.ops)
    name = _name(bounds, len(letters), session.plan.jobs)
    for position in _positions(session, name, space):
        session.feedback.clear()
        data = program_at(letters, position)
        if session.execute(data) and session.store is not None:
            session.store.save_input(data)
    session.is_exhausted = True
    session.note_position(name, space)
