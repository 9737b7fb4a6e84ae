# SPDX-License-Identifier: GPL-2.0-or-later
"""What an SEV-ES or SNP guest does beside its hypercalls: GHCB exchanges and page states."""

from __future__ import annotations

from typing import ClassVar

from guestemu.events.base import TABLE_WRITES, Event


class MsrRequest(Event, frozen=True, gc=False, tag="ghcb-msr"):
    """One exchange of the GHCB MSR protocol: what the guest wrote and what it then reads."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    request: int
    answer: int
    table_writes: int


class GhcbRequest(Event, frozen=True, gc=False, tag="ghcb"):
    """One exchange through a GHCB page: exit code with its two parameters, and the two answers."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    code: int
    info_1: int
    info_2: int
    answer_1: int
    answer_2: int
    table_writes: int


class PageStateChange(Event, frozen=True, gc=False, tag="page-state"):
    """Frames that the guest wants private or shared, and what came of it.

    `attributes` are those of KVM_HC_MAP_GPA_RANGE, with which KVM hands the request to user space
    (K4-a); `result` is 0 or the answer that refused it.
    """

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    gfn: int
    pages: int
    attributes: int
    is_private: bool
    result: int
    table_writes: int


class Validation(Event, frozen=True, gc=False, tag="pvalidate"):
    """PVALIDATE: frames that the guest accepts (`validate`) or gives back.

    `is_double`: it changed nothing (CF=1); `is_implicit`: the hypervisor had to assign the page
    first, as the guest had not asked for it; `result` is EAX.
    """

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    gfn: int
    pages: int
    validate: bool
    is_double: bool
    is_implicit: bool
    result: int
    table_writes: int


class PermissionChange(Event, frozen=True, gc=False, tag="rmpadjust"):
    """RMPADJUST: `attributes` as in RDX, target VMPL in [7:0], its rights in [15:8], VMSA in [16];
    `result` is EAX."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    gfn: int
    attributes: int
    result: int
    table_writes: int


class VcpuCreation(Event, frozen=True, gc=False, tag="ap-creation"):
    """SVM_VMGEXIT_AP_CREATION of vCPU `apic_id` with the VMSA at `gfn`: `request` 0 create at INIT,
    1 create, 2 destroy; `result` 0, or KVM's reason for the refusal; `state`, what the vCPU then
    does, in words."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES
    blank: ClassVar[frozenset[str]] = frozenset({"state"})

    gfn: int
    apic_id: int
    request: int
    result: int
    state: str
    table_writes: int


class MemoryFault(Event, frozen=True, gc=False, tag="memory-fault"):
    """KVM_EXIT_MEMORY_FAULT: an access of the other kind than the frame's attribute; user space
    converts the frame to `is_private` (`result` 0) or stops the VM."""

    unhashed: ClassVar[frozenset[str]] = TABLE_WRITES

    gfn: int
    is_private: bool
    result: int
    table_writes: int
