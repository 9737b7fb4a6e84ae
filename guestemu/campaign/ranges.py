# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps kernel calls to what a driver may ask for.

A driver converts whole pages of memory it owns. Other calls are true to the kernel but a defect of
the caller: a range over the end of its buffer converts what lies behind (over a hole, A26c maps
other frames there), an address inside a page makes the notifier report one leaf too many, the
early functions know only the direct map; a second `stop_conversion` waits for ever for the lock
that the first one keeps. A campaign without `--faults` looks for defects of the host and of the
kernel under good callers, so such a program is changed before it runs; the changed one is what is
saved. Lengths are also bounded: page 65 of a range shows what page 64 does not, page 2000 shows
nothing new and costs milliseconds. In region G a leaf is 1 GiB and costs as much as a page, but
splitting it costs as much as hundreds of them: there a call for more pages than in region L is made
one for whole leaves. A store into two pages begins at a word: accesses across a page boundary are
not modelled exactly (docs/machine.md), and rolling one back takes long in gigabytes of RAM. A host
that answers a hypercall with 0 and does not act on it lies, which no guest can tell: an ordered
answer is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, PUD_SIZE, U64_MASK
from guestemu.abi.errno import EINVAL
from guestemu.program.ops import REGIONS, Op, OpKind, Region

Limit: TypeAlias = Callable[[tuple[Op, ...], bool], tuple[Op, ...]]
"""What makes ops a program of a target; the bool says that callers are good ones. Applied to its
own result it changes nothing."""

MAX_PAGES: Final = 66
"""Pages of a conversion where leaves are 4 KiB: one word of a bitmap and a page on either side."""

MAX_LARGE_PAGES: Final = 2 * (PMD_SIZE >> PAGE_SHIFT) + 1
"""Pages of a conversion in region L: two 2 MiB leaves and a page."""

MAX_EARLY_PAGES: Final = 4
"""Pages of an early conversion, which also encrypts the contents in place."""

MAX_STORE: Final = 2 * PAGE_SIZE
"""Bytes of a store."""

_BY_PAGES: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})
_BY_SIZE: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})
_WORD: Final = 7
_SMALL: Final = frozenset({Region.D, Region.V})
_GIANT_PAGES: Final = PUD_SIZE >> PAGE_SHIFT
_U32: Final = 0xFFFF_FFFF
_REFUSED: Final = -EINVAL & U64_MASK


def _cut(length: int, limit: int) -> int:
    """`length` if it is at most `limit`, else some length from 1 to `limit` that it decides."""
    return length if length <= limit else length % limit + 1


def _with(
    op: Op, arguments: tuple[int, ...], region: Region | None = None, page: int | None = None
) -> Op:
    region = op.region if region is None else region
    page = op.page if page is None else page
    if arguments == op.arguments and region is op.region and page == op.page:
        return op
    return Op(op.kind, arguments, region, page, op.has_page, op.vcpu, op.mode, op.cpl)


def _limit_pages(op: Op, lawful: bool) -> Op:
    pages, offset = op.arguments
    pages &= _U32
    offset = 0 if lawful else offset
    room = REGIONS[op.region].pages - op.page
    if op.region is Region.G and pages > MAX_LARGE_PAGES:
        first = op.page - op.page % _GIANT_PAGES
        room += op.page - first
        return _with(op, (min(-(-pages // _GIANT_PAGES) * _GIANT_PAGES, room), offset), page=first)
    most = MAX_PAGES if op.region in _SMALL else MAX_LARGE_PAGES
    return _with(op, (_cut(pages, min(room, most)), offset))


def limit_op(op: Op, lawful: bool) -> Op:
    """`op` with bounded lengths and, if `lawful`, as a good caller would make it."""
    arguments = op.arguments
    region = op.region
    spec = REGIONS[region]
    room = spec.pages - op.page
    if op.kind in _BY_PAGES:
        return _limit_pages(op, lawful)
    if op.kind in _BY_SIZE:
        size, offset = arguments
        if lawful:
            offset = 0
            region = Region.D if region is Region.V else region
        most = (min(room, MAX_EARLY_PAGES) << PAGE_SHIFT) - offset
        return _with(op, (_cut(size, most), offset), region)
    if op.kind is OpKind.WRITE:
        value, offset, size = arguments
        size = _cut(size, min(room << PAGE_SHIFT, MAX_STORE) - offset)
        if offset + size > PAGE_SIZE:
            offset &= ~_WORD
        return _with(op, (value, offset, size))
    if op.kind is OpKind.READ:
        return _with(op, (min(arguments[0], PAGE_SIZE - 8),))
    if op.kind is OpKind.ANSWER and not arguments[0]:
        return _with(op, (_REFUSED, arguments[1]))
    return op


def limit_ops(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """`limit_op` for every op, without any STOP_CONVERSION after the first (A21)."""
    kept: list[Op] = []
    is_stopped = False
    for op in ops:
        if op.kind is OpKind.STOP_CONVERSION:
            if is_stopped:
                continue
            is_stopped = True
        kept.append(limit_op(op, lawful))
    return tuple(kept)
