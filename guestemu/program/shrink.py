# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a program that shows something smaller while it still shows it.

First ops are removed by delta debugging (halves, quarters … single ops, from the end, where ops
after the finding are). Then what is left is simplified field by field towards the defaults that the
text form leaves out: page operands to D[0], arguments to their default or the smallest value that
still works (bisection, so `pages=1000` behind a defect of more than 33 pages becomes 34), mode, CPL
and vCPU, and the header. Both repeat until nothing helps. The order is fixed: no randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from guestemu.abi.x86 import Mode
from guestemu.program.ops import SPECS, Instruction, Op, OpKind, Region, canonical_op
from guestemu.program.program import Header, Program
from guestemu.program.validity import header_problem, problem_of, takes_page

DEFAULT_LIMIT: Final = 2000
"""Evaluations of the predicate, each of them a run."""

_HEADER_FIELDS: Final = (
    "switches",
    "vcpus",
    "layout",
    "memory",
    "coherent",
    "cache",
    "sev",
    "cbit",
    "seed",
    "budget",
)


class _Search:
    """The smallest program so far, and how many evaluations are left."""

    __slots__ = ("_keeps", "_seen", "best", "left")

    def __init__(self, program: Program, keeps: Callable[[Program], bool], limit: int) -> None:
        self.best = program
        self.left = limit
        self._keeps = keeps
        self._seen = {(program.header, program.ops)}

    def accept(self, header: Header, ops: tuple[Op, ...]) -> bool:
        """Takes a candidate over when it is new, valid and kept."""
        key = (header, ops)
        if self.left <= 0 or key in self._seen or header_problem(header) is not None:
            return False
        if any(problem_of(op, header) is not None for op in ops):
            return False
        self._seen.add(key)
        self.left -= 1
        candidate = Program(header, ops)
        if not self._keeps(candidate):
            return False
        self.best = candidate
        return True

    def accept_ops(self, ops: tuple[Op, ...]) -> bool:
        """`accept` under the header so far."""
        return self.accept(self.best.header, ops)

    def accept_op(self, index: int, op: Op) -> bool:
        """`accept` with the op at `index` replaced; False at once when that changes nothing."""
        ops = self.best.ops
        if ops[index] == op:
            return False
        return self.accept_ops((*ops[:index], op, *ops[index + 1 :]))


def _remove_ops(search: _Search) -> None:
    """Delta debugging on the ops, chunks from large to small, each size until nothing goes."""
    size = max(len(search.best.ops), 1)
    while size:
        end = len(search.best.ops)
        removed = False
        while end > 0:
            start = max(end - size, 0)
            ops = search.best.ops
            removed |= search.accept_ops(ops[:start] + ops[end:])
            end = start
        if not removed:
            size //= 2


def _minimise(value: int, floor: int, accept: Callable[[int], bool]) -> None:
    """Brings a number down to the smallest that `accept` takes, if it also takes larger ones.

    `floor` itself is tried first; between a refused and an accepted value the search bisects.
    """
    if value == floor or accept(floor):
        return
    low, high = (0, value) if value < floor else (floor, value)
    if low != floor and (value == low or accept(low)):
        return
    while high - low > 1:
        middle = (low + high) // 2
        if accept(middle):
            high = middle
        else:
            low = middle


def _simplify_numbers(search: _Search, index: int) -> None:
    """Arguments and the page index of one op."""
    for position, argument in enumerate(SPECS[search.best.ops[index].kind].arguments):

        def accept_argument(value: int, position: int = position) -> bool:
            op = search.best.ops[index]
            arguments = (*op.arguments[:position], value, *op.arguments[position + 1 :])
            return search.accept_op(index, msgspec.structs.replace(op, arguments=arguments))

        value = search.best.ops[index].arguments[position]
        _minimise(value, argument.default, accept_argument)

    def accept_page(page: int) -> bool:
        return search.accept_op(index, msgspec.structs.replace(search.best.ops[index], page=page))

    _minimise(search.best.ops[index].page, 0, accept_page)


def _simpler_ops(op: Op) -> Iterator[Op]:
    """`op` with one of its fields at the default."""
    replace = msgspec.structs.replace
    if op.mode is not Mode.LONG64 and op.cpl:
        yield replace(op, mode=Mode.LONG64, cpl=0)
    if op.mode is not Mode.LONG64:
        yield replace(op, mode=Mode.LONG64)
    if op.cpl:
        yield replace(op, cpl=0)
    if op.instruction is not Instruction.VMMCALL:
        yield replace(op, instruction=Instruction.VMMCALL)
    if op.vcpu:
        yield replace(op, vcpu=0)
    if takes_page(op) and op.region is not Region.D:
        yield replace(op, region=Region.D, page=0)
        yield replace(op, region=Region.D)
    if op.kind is OpKind.HYPERCALL and op.has_page:
        yield replace(op, region=Region.D, page=0, has_page=False)


def _simplify_ops(search: _Search) -> None:
    for index in range(len(search.best.ops)):
        changed = True
        while changed:
            changed = any(
                search.accept_op(index, simpler) for simpler in _simpler_ops(search.best.ops[index])
            )
        _simplify_numbers(search, index)


def _simplify_header(search: _Search) -> None:
    """Each field at its default, and of the switches as few as possible."""
    default = Header()
    for field in _HEADER_FIELDS:
        header = search.best.header
        if getattr(header, field) != getattr(default, field):
            simpler = msgspec.structs.replace(header, **{field: getattr(default, field)})
            search.accept(simpler, search.best.ops)
    for switch in search.best.header.switches:
        header = search.best.header
        fewer = tuple(name for name in header.switches if name != switch)
        search.accept(msgspec.structs.replace(header, switches=fewer), search.best.ops)


def shrink(
    program: Program, keeps: Callable[[Program], bool], limit: int = DEFAULT_LIMIT
) -> Program:
    """The smallest program found that `keeps` accepts, with at most `limit` calls of it.

    `keeps(program)` is taken for granted; when nothing smaller is accepted the result is `program`
    itself in canonical form. Neither candidates nor the result have expectations: they were about
    other ops, and the caller records new ones. Whatever `keeps` raises passes through. `keeps`
    should compare a finding's key, not just "fails", or the result may show another defect. Guest
    and host stay. Deterministic when `keeps` is.
    """
    start = Program(program.header, tuple(map(canonical_op, program.ops)))
    search = _Search(start, keeps, limit)
    while search.left > 0:
        before = search.best
        _remove_ops(search)
        _simplify_ops(search)
        _simplify_header(search)
        if search.best == before:
            break
    return search.best
