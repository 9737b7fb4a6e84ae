# SPDX-License-Identifier: GPL-2.0-or-later
"""The host of the ledger: the reference user space, which fails where it is ordered to, and knows
the two signals that were proposed and never defined.

Both are the ledger's own inventions and documented as such: a hypercall "stop this and every later
migration" (Kalra, 14 May 2021: 'notify the host/hypervisor to block/stop any future/ongoing
migration') and a bit of MIGRATION_CONTROL that says "for good" (Rutherford, 17 May 2021).
"""

from __future__ import annotations

from typing import ClassVar, Final

from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.x86 import VECTOR_GP
from guestemu.host.base import GuestFault, Hypercall, VcpuAccess
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.study.ledger.failures import FaultPoint

HC_STOP_MIGRATION: Final = 0x100
"""Number of the proposed hypercall (`on-error.inc.S`)."""

DISABLED_FOR_GOOD: Final = 2
"""MIGRATION_CONTROL value of the proposed permanent disable (`on-error.inc.S`)."""


class LedgerHost(MapGpaRangeHost):
    """`answers` and `msr_writes` order failures. `is_stopped`: the guest made the stop hypercall;
    `is_disabled`: it disabled migration for good, which no later READY takes back. `told` counts
    how often it said that it must not be migrated: by 0 after READY, for good, or by the hypercall.
    """

    name: ClassVar[str] = "ledger"
    summary: ClassVar[str] = "the reference user space with failures at any step"

    def __init__(self) -> None:
        self.answers = FaultPoint()
        self.msr_writes = FaultPoint()
        self.answer = 0
        self._forget()
        super().__init__()

    def _forget(self) -> None:
        self.is_stopped = False
        self.is_disabled = False
        self.told = 0
        self.answers.begin()
        self.msr_writes.begin()

    def reset(self, frames: int) -> None:
        """A new VM."""
        super().reset(frames)
        self._forget()

    def restore(self, frames: int) -> None:
        """As `reset`."""
        super().restore(frames)
        self._forget()

    def hypercall(self, call: Hypercall) -> int:
        """An ordered answer, which is not recorded; the stop hypercall; or KVM's own."""
        if call.nr == HC_STOP_MIGRATION:
            self.is_stopped = True
            self.told += 1
            return 0
        if call.nr == KVM_HC_MAP_GPA_RANGE and self.answers.hit():
            return self.answer
        return super().hypercall(call)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """An ordered #GP; "for good"; or KVM's own."""
        if index == MSR_KVM_MIGRATION_CONTROL:
            if self.msr_writes.hit():
                raise GuestFault(VECTOR_GP, 0)
            if value == DISABLED_FOR_GOOD:
                self.is_disabled = True
                self.told += 1
                value = 0
            elif self.migration_ready and not value & KVM_MIGRATION_READY:
                self.told += 1
        super().wrmsr(index, value, vcpu)
