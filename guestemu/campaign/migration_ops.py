# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes any ops a migration by a host that keeps to one order of steps.

A guest's operations on the first pages of region D stay where they are. The host's steps between
them become those of the order, one after another and over again; before the stop the pass that is
under way is finished and a whole one follows, as a host's final pass does. Behind the stop the
guest reads every page that it wrote, which is where the check judges, and goes on.

Letters of an order, as in `guestemu explore`: D fetches and clears the dirty log, G fetches it, C
clears it, E copies the record, S sends by the copy, L by the record as it is now. Which orders are
right is the question of facts G.1; with a kernel that converts and notifies in one call, so that no
host step falls in between, `DES` loses nothing that is defined.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import dropwhile
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.campaign.ranges import Limit, limit_op
from guestemu.migration.host_ops import HOST_OP_KINDS, HOST_OPS
from guestemu.migration.model.notation import parse_order
from guestemu.migration.model.steps import HostStep
from guestemu.program.ops import Op, OpKind, Region

LAWFUL_ORDER: Final = "DES"
PAGES: Final = 8
"""Pages of region D that a program's operations are about."""

MAX_ORDER: Final = 6
_BODY: Final = 12
"""Operations between start and final pass."""

_BEHIND: Final = 4
"""Operations at the destination behind the reads."""

MAX_OPS: Final = 1 + _BODY + 2 * MAX_ORDER + 1 + PAGES + _BEHIND

_CONVERSIONS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})
_LINK: Final = frozenset({OpKind.LINK_REPLAY, OpKind.LINK_REVERSE})
_STARTS: Final = frozenset({OpKind.MIGRATE_START, OpKind.MIGRATE_HANDLER})
_ONCE: Final = _STARTS | {OpKind.MIGRATE_STOP}


def steps_of(order: str) -> list[Op]:
    """The operations of an order such as "DES". Raises `InputError`."""
    try:
        steps = parse_order(order).steps
    except InputError:
        steps = ()
    if not 0 < len(order) <= MAX_ORDER or len(steps) != len(order):
        letters = "".join(step.value for step in HostStep)
        raise InputError(
            f"migration order {order!r}: take up to {MAX_ORDER} of the letters {letters}, S or L "
            f"among them, such as {LAWFUL_ORDER}"
        )
    return [HOST_OPS[step] for step in steps]


def _is_step(op: Op) -> bool:
    return op.kind in HOST_OP_KINDS


def _without_last_steps(ops: Iterable[Op]) -> list[Op]:
    return list(dropwhile(_is_step, reversed(list(ops))))[::-1]


def _on_few_pages(op: Op) -> Op:
    """A guest's operation moved to the first pages of region D."""
    page = op.page % PAGES
    room = PAGES - page
    arguments = limit_op(op, lawful=True).arguments
    if op.kind in _CONVERSIONS:
        arguments = ((arguments[0] - 1) % room + 1, 0)
    elif op.kind is OpKind.WRITE:
        value, offset, size = arguments
        if offset + size > PAGE_SIZE:
            offset &= ~7  # the machine is not exact for a store across the border of two pages
        arguments = (value, offset, min(size, (room << PAGE_SHIFT) - offset))
    elif op.kind is OpKind.LINK_REPLAY:
        return Op(op.kind, op.arguments, Region.D, page)
    elif op.kind is OpKind.LINK_REVERSE:
        return op
    return Op(op.kind, arguments, Region.D, page, vcpu=op.vcpu)


def _written(ops: Iterable[Op]) -> list[int]:
    """The pages that stores among `ops` touch."""
    pages: set[int] = set()
    for op in ops:
        if op.kind is OpKind.WRITE:
            _value, offset, size = op.arguments
            if size:
                pages.update(range(op.page, op.page + (offset + size - 1 >> PAGE_SHIFT) + 1))
    return sorted(page for page in pages if page < PAGES)


def migration_limiter(order: str, by_handler: bool = False) -> Limit:
    """What makes ops a migration by `order`. With `by_handler` private pages go through migration
    handlers, else by what MIGRATE_START says.

    Raises `InputError` for an invalid order.
    """
    steps = steps_of(order)

    def limit(ops: tuple[Op, ...], _lawful: bool) -> tuple[Op, ...]:
        kinds = [op.kind for op in ops]
        end = kinds.index(OpKind.MIGRATE_STOP) if OpKind.MIGRATE_STOP in kinds else len(ops)
        starts = [op.arguments[1] for op in ops if op.kind is OpKind.MIGRATE_START]
        body = _without_last_steps(op for op in ops[:end] if op.kind not in _ONCE)
        body = _without_last_steps(body[:_BODY])
        done = 0
        for index, op in enumerate(body):
            if _is_step(op):
                body[index] = steps[done % len(steps)]
                done += 1
            else:
                body[index] = _on_few_pages(op)
        firmware = int(any(op.kind in _LINK for op in body)) or (starts[0] if starts else 0)
        start = Op(OpKind.MIGRATE_START, (PAGES, firmware))
        behind = (
            _on_few_pages(op)
            for op in ops[end:]
            if not _is_step(op) and op.kind not in _ONCE | _LINK
        )
        after = list(dropwhile(lambda op: op.kind is OpKind.READ, behind))
        return (
            Op(OpKind.MIGRATE_HANDLER, (PAGES,)) if by_handler else start,
            *body,
            *(steps[done % len(steps) :] if done % len(steps) else ()),
            *steps,
            Op(OpKind.MIGRATE_STOP),
            *(Op(OpKind.READ, (0,), page=page) for page in _written(body)),
            *after[:_BEHIND],
        )

    return limit
