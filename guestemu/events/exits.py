# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest left for its host, and how the host answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from guestemu.events.base import TABLE_WRITES, Event


class AnsweredExit(Event, frozen=True):
    """One exit that was answered. `nr` is the hypercall's or the MSR's number, `args` a0 to a3 of a
    hypercall, (value,) of a WRMSR; `ret` RAX or the MSR's value, 64 bits unsigned, None where the
    guest got an exception instead.

    `table_writes` is the number of page-table stores of the operation before this exit, by which
    the exit is put in order with changes of leaves. `cpl` and `is_64bit` say where a hypercall's
    vCPU stood. `is_hypercall` and its like are for readers on the path of every operation:
    `isinstance` of another struct costs ten times as much.
    """

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES
    is_hypercall: ClassVar[bool] = False
    is_rdmsr: ClassVar[bool] = False
    is_wrmsr: ClassVar[bool] = False

    nr: int
    args: tuple[int, ...]
    ret: int | None
    table_writes: int
    cpl: int = 0
    is_64bit: bool = True


class HypercallExit(AnsweredExit, frozen=True, gc=False, tag="hypercall"):
    """VMMCALL or VMCALL (KVM_EXIT_HYPERCALL, or answered in the kernel)."""

    is_hypercall: ClassVar[bool] = True


class MapGpaRangeExit(HypercallExit, frozen=True, gc=False, tag="map-gpa-range"):
    """KVM_EXIT_HYPERCALL with number 12 that KVM made of a page-state change (SNP) or a MapGPA
    (TDX); no instruction of the guest was a hypercall. `origin` is that of `MapGpaRange`.

    A hypercall to user space, so readers of hypercalls read these."""

    origin: str = ""


class RdmsrExit(AnsweredExit, frozen=True, gc=False, tag="rdmsr"):
    """RDMSR of an MSR that the host answers."""

    is_rdmsr: ClassVar[bool] = True


class WrmsrExit(AnsweredExit, frozen=True, gc=False, tag="wrmsr"):
    """WRMSR of an MSR that the host answers; `ret` is the value, or None where it was refused."""

    is_wrmsr: ClassVar[bool] = True


def exits_of(events: Iterable[Event]) -> list[AnsweredExit]:
    """The answered exits among `events`."""
    return [event for event in events if isinstance(event, AnsweredExit)]
