# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD did beside its hypercalls, as typed records in order.

`table_writes` of each record is the number of stores into page tables before it since the log of
those was read last (`GuestRam.table_writes`).
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

import msgspec

from guestemu.machine.sept import AccessEnd, AccessKind

KEPT: Final = 4096
"""A guest that runs for hours keeps its last events only."""


class MapGpaCall(msgspec.Struct, frozen=True):
    """TDG.VP.VMCALL<MapGPA>: bytes from `gpa` (without the shared bit), what R10 and R11 held
    afterwards; `next_gpa` counts after a retry only."""

    gpa: int
    size: int
    private: bool
    status: int
    next_gpa: int
    table_writes: int


class Accept(msgspec.Struct, frozen=True):
    """TDG.MEM.PAGE.ACCEPT of the page at `gpa`; `level` 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.

    `exits` EPT violations to the host came before the completion code `result`."""

    gpa: int
    level: int
    result: int
    exits: int
    table_writes: int


class SeptViolation(msgspec.Struct, frozen=True):
    """An access that the page's state does not allow: alias, kind, the state that it met, and what
    came of it. `converted`: user space converted the page and the access went on."""

    gpa: int
    private: bool
    kind: AccessKind
    state: str
    end: AccessEnd
    converted: bool
    rip: int
    table_writes: int


TdEvent: TypeAlias = MapGpaCall | Accept | SeptViolation
TdEvents: TypeAlias = deque[TdEvent]


def new_td_events() -> TdEvents:
    """An empty log of the last `KEPT` events."""
    return deque(maxlen=KEPT)
