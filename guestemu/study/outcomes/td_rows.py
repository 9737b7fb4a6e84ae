# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the table T18: each answer of MapGPA and of ACCEPT, for both directions."""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi import tdx
from guestemu.study.outcomes.answers import At, MapGpaReply

MANY: Final = 1024
"""Pages of the rows that take more than one chunk."""


class AcceptPlan(msgspec.Struct, frozen=True):
    """ACCEPT completes with `status`: every one, those of one `level`, or that of one `page`."""

    status: int
    level: int | None = None
    page: int | None = None


class TdRow(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion of `pages`; `to_private` is set_memory_encrypted of shared pages."""

    to_private: bool
    pages: int
    title: str
    answers: tuple[MapGpaReply, ...] = ()
    event_every_chunk: bool = False
    accept: AcceptPlan | None = None


_SAME: Final = MapGpaReply(tdx.VMCALL_RETRY)
_PAGE: Final = 0x1000


def _retry(at: int | At, pages: int | None = None) -> MapGpaReply:
    return MapGpaReply(tdx.VMCALL_RETRY, at, pages)


def _steps(stalls: int) -> tuple[MapGpaReply, ...]:
    """Eight pages, one for each retry with progress, `stalls` without before each."""
    return tuple(
        answer for page in range(1, 8) for answer in (*(_SAME,) * stalls, _retry(_PAGE * page))
    )


_STATUSES: Final = (
    ("invalid operand", tdx.VMCALL_INVALID_OPERAND),
    ("GPA in use", tdx.VMCALL_GPA_INUSE),
    ("align error", tdx.VMCALL_ALIGN_ERROR),
    ("sub-function unsupported", tdx.VMCALL_SUBFUNC_UNSUPPORTED),
    ("2", 2),
    ("11", 11),
    ("22", 22),
    ("-22", -22),
    ("-1", -1),
)

_MAP_GPA: Final[tuple[tuple[int, str, tuple[MapGpaReply, ...]], ...]] = (
    (1, "0", ()),
    (1, "retry, R11 = start, once", (_SAME,)),
    (1, "retry, R11 = start, twice", (_SAME,) * 2),
    (1, "retry, R11 = start, three times", (_SAME,) * 3),
    (1, "retry, R11 = 0", (_retry(At.ZERO, 0),)),
    (1, "retry, R11 = end", (_retry(_PAGE),)),
    (1, "retry, R11 = end, page not converted", (_retry(_PAGE, 0),)),
    (1, "retry, R11 = start, bit inverted", (_retry(At.INVERTED, 0),)),
    (1, "retry, R11 = start + 1", (_retry(1, 0),)),
    (1, "retry, R11 = start + 1, then 0", (_retry(1, 0), MapGpaReply(tdx.VMCALL_SUCCESS, 0, 1))),
    *((1, name, (MapGpaReply(status, pages=0),)) for name, status in _STATUSES),
    (1, "invalid operand, but converted", (MapGpaReply(tdx.VMCALL_INVALID_OPERAND, pages=1),)),
    (1, "0, but nothing converted", (MapGpaReply(tdx.VMCALL_SUCCESS, pages=0),)),
    (8, "retry with progress by a page, 7 times", _steps(0)),
    (8, "the same, 2 stalls before each", _steps(2)),
    (8, "a page, then 3 stalls", (_retry(_PAGE), *(_SAME,) * 3)),
    (
        8,
        "2 pages, then invalid operand",
        (_retry(2 * _PAGE), MapGpaReply(tdx.VMCALL_INVALID_OPERAND)),
    ),
    (8, "progress of 2 pages claimed, 1 done", (_retry(2 * _PAGE, 1),)),
    (0, "no pages", ()),
    (MANY, "0, in chunks of 2 MiB", ()),
)

_ACCEPT: Final = (
    (1, "ACCEPT busy", AcceptPlan(tdx.OPERAND_BUSY)),
    (1, "ACCEPT invalid", AcceptPlan(tdx.OPERAND_INVALID)),
    (1, "ACCEPT already accepted", AcceptPlan(tdx.PAGE_ALREADY_ACCEPTED)),
    (1, "ACCEPT size mismatch", AcceptPlan(tdx.PAGE_SIZE_MISMATCH)),
    (8, "ACCEPT of the fourth page busy", AcceptPlan(tdx.OPERAND_BUSY, page=3)),
    (MANY, "ACCEPT of 2 MiB busy", AcceptPlan(tdx.OPERAND_BUSY, level=tdx.LEVEL_2M)),
    (MANY, "ACCEPT of 2 MiB invalid", AcceptPlan(tdx.OPERAND_INVALID, level=tdx.LEVEL_2M)),
)

ROWS: Final = (
    *(
        row
        for to_private in (False, True)
        for row in (
            *(
                TdRow(to_private=to_private, pages=pages, title=title, answers=answers)
                for pages, title, answers in _MAP_GPA
            ),
            TdRow(
                to_private=to_private,
                pages=MANY,
                title="an event after every chunk",
                event_every_chunk=True,
            ),
            TdRow(
                to_private=to_private,
                pages=MANY,
                title="0, but only the first 2 MiB done",
                answers=(MapGpaReply(tdx.VMCALL_SUCCESS, pages=512),),
            ),
        )
    ),
    *(
        TdRow(to_private=True, pages=pages, title=title, accept=plan)
        for pages, title, plan in _ACCEPT
    ),
)
