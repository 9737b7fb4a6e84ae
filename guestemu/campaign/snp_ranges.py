# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps programs of the `hostile-host` target short to run.

PVALIDATE is an instruction for each 4 KiB page, also of a 2 MiB entry, because KVM up to 7.3 backs
guests with 4 KiB: a conversion of region L takes as long as five hundred small ones. A whole 2 MiB
page stays possible, for the entries of that size.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PMD_SIZE
from guestemu.campaign.ranges import limit_ops
from guestemu.program.ops import Op, OpKind, Region

_SMALL: Final = 12
"""Pages of a conversion; the victim of a lie is the eighth behind the first."""

_PMD_PAGES: Final = PMD_SIZE >> PAGE_SHIFT
_SETS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})


def _limit(op: Op) -> Op:
    if op.kind not in _SETS:
        return op
    pages, offset = op.arguments
    is_whole = op.region is Region.L and pages == _PMD_PAGES and not op.page % _PMD_PAGES
    if pages <= _SMALL or is_whole:
        return op
    return msgspec.structs.replace(op, arguments=(pages % _SMALL + 1, offset))


def limit_snp_ops(ops: tuple[Op, ...], lawful: bool) -> tuple[Op, ...]:
    """The ops of a program that keeps to `limit_ops`, with short conversions."""
    return tuple(_limit(op) for op in limit_ops(ops, lawful))
