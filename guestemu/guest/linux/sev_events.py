# SPDX-License-Identifier: GPL-2.0-or-later
"""What a SEV-ES or SNP guest did beside its hypercalls, as typed records in order.

`table_writes` of each record is the number of stores into page tables before it since the log of
those was read last (`GuestRam.table_writes`): so the order of a conversion's steps can be told.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

import msgspec

KEPT: Final = 4096
"""A guest that runs for hours keeps its last events only."""


class MsrRequest(msgspec.Struct, frozen=True):
    """One exchange of the GHCB MSR protocol: what the guest wrote and what it then reads."""

    request: int
    answer: int
    table_writes: int


class GhcbRequest(msgspec.Struct, frozen=True):
    """One exchange through a GHCB page: exit code with its two parameters, and the two answers."""

    code: int
    info_1: int
    info_2: int
    answer_1: int
    answer_2: int
    table_writes: int


class PageStateChange(msgspec.Struct, frozen=True):
    """Frames that the guest wants private or shared, and what came of it.

    `attributes` are those of KVM_HC_MAP_GPA_RANGE, with which KVM hands the request to user space
    (K4-a); `result` is 0 or the answer that refused it.
    """

    gfn: int
    pages: int
    attributes: int
    is_private: bool
    result: int
    table_writes: int


class Validation(msgspec.Struct, frozen=True):
    """PVALIDATE: frames that the guest accepts (`validate`) or gives back.

    `is_double`: it changed nothing (CF=1); `is_implicit`: the hypervisor had to assign the page
    first, as the guest had not asked for it; `result` is EAX.
    """

    gfn: int
    pages: int
    validate: bool
    is_double: bool
    is_implicit: bool
    result: int
    table_writes: int


class PermissionChange(msgspec.Struct, frozen=True):
    """RMPADJUST: permissions of a less privileged VMPL, not modelled further."""

    gfn: int
    attributes: int
    table_writes: int


SevEvent: TypeAlias = MsrRequest | GhcbRequest | PageStateChange | Validation | PermissionChange
SevEvents: TypeAlias = deque[SevEvent]


def new_events() -> SevEvents:
    """An empty log of the last `KEPT` events."""
    return deque(maxlen=KEPT)
