# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD does beside its hypercalls: MapGPA, ACCEPT, accesses that its page states refuse."""

from __future__ import annotations

from typing import ClassVar

from guestemu.events.base import TABLE_WRITES, Event


class MapGpaCall(Event, frozen=True, gc=False, tag="mapgpa"):
    """TDG.VP.VMCALL<MapGPA>: bytes from `gpa` (without the shared bit), what R10 and R11 held
    afterwards; `next_gpa` counts after a retry only."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    gpa: int
    size: int
    private: bool
    status: int
    next_gpa: int
    table_writes: int


class Accept(Event, frozen=True, gc=False, tag="accept"):
    """TDG.MEM.PAGE.ACCEPT of the page at `gpa`; `level` 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.

    `exits` EPT violations to the host came before the completion code `result`."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    gpa: int
    level: int
    result: int
    exits: int
    table_writes: int


class SeptViolation(Event, frozen=True, gc=False, tag="sept-violation"):
    """An access that the page's state does not allow: alias, kind (a value of `AccessKind`), the
    state that it met, and what came of it (a value of `AccessEnd`). `converted`: user space
    converted the page and the access went on."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES
    blank: ClassVar[frozenset[str]] = frozenset({"rip"})

    gpa: int
    private: bool
    kind: str
    state: str
    end: str
    converted: bool
    rip: int
    table_writes: int
