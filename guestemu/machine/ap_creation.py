# SPDX-License-Identifier: GPL-2.0-or-later
"""SVM_VMGEXIT_AP_CREATION: an SNP guest gives a vCPU its registers, or takes them away.

The guest writes the registers of an AP into a page, makes it a VMSA by RMPADJUST, and names it to
KVM, which runs the vCPU from it. KVM looks at the address and at the SEV_FEATURES that the guest
says, not at the page: what VMRUN refuses, user space hears when it runs the vCPU. What the VMSAs
do to the guest's memory is in `Rmp`. In a machine of one CPU the other vCPUs execute nothing; of
several, each takes its first registers from its VMSA (`take_entered`).

Source: sev_snp_ap_creation() and sev_snp_init_protected_guest_state() in arch/x86/kvm/svm/sev.c of
6.12.117 and 7.3.4; "6.11" from the repair of March 2025, which says what was before. Facts N26, N57
to N59.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, Gpa
from guestemu.machine.rmp import Rmp
from guestemu.machine.snp_psc import PscKernel

KVM_VCPUS: Final = 4
"""vCPUs of the VM, as user space made them: their ids are the APIC ids 0 to 3. A guest need not
start all."""

_GPA_END: Final = 1 << 48
_NOWHERE: Final = -1


class ApState(enum.Enum):
    """What a vCPU does."""

    ABSENT = "does not exist"
    LAUNCHED = "has the VMSA of the launch"
    WAITS = "waits for INIT with the guest's VMSA"
    RUNS = "runs from the guest's VMSA"
    FAILS = "fails in KVM_RUN: VMRUN refuses the VMSA"
    STOPPED = "has no VMSA and does not run"


class ApRecord(msgspec.Struct, frozen=True):
    """What a snapshot keeps, each by APIC id: system frames of VMSAs (`ApCreation`), VMSAs that
    wait for INIT, and those whose registers a vCPU has not taken yet."""

    vmsas: dict[int, int | None] = {}
    pending: dict[int, int] = {}
    entered: dict[int, int] = {}


class VcpuStops(Exception):
    """The vCPU that asked is not entered again with the registers that it had."""


class ApCreation:
    """KVM of one SNP guest, for its vCPUs. A `Device`. There are `vcpus` of them."""

    def __init__(
        self, rmp: Rmp, features: int = abi.SEV_FEATURE_SNP_ACTIVE, vcpus: int = KVM_VCPUS
    ) -> None:
        self.vcpus = vcpus
        self.features = features
        """SEV_FEATURES of the VM, as user space chose them."""
        self._rmp = rmp
        self._vmsas: dict[int, int | None] = {}
        """By APIC id the system frame of the guest's VMSA, -1 for none, None for one that VMRUN
        refused."""
        self._pending: dict[int, int] = {}
        self._entered: dict[int, int] = {}
        """By APIC id the guest frame of a VMSA that the vCPU has not begun from yet."""
        self._base = self.save()

    def save(self) -> ApRecord:
        """For a snapshot."""
        return ApRecord(dict(self._vmsas), dict(self._pending), dict(self._entered))

    def load(self, record: ApRecord) -> None:
        """As `save` returned it; the RMP, which was loaded before, has the VMSAs in use again."""
        self._set(record)
        for sfn in self._vmsas.values():
            if sfn is not None and sfn != _NOWHERE:
                self._rmp.enter(sfn)

    def _set(self, record: ApRecord) -> None:
        self._vmsas, self._pending = dict(record.vmsas), dict(record.pending)
        self._entered = dict(record.entered)

    def checkpoint(self) -> None:
        """See `Device`."""
        self._base = self.save()

    def rollback(self) -> None:
        """See `Device`; the RMP has a rollback of its own."""
        if self._vmsas or self._pending:
            self._set(self._base)

    def take_entered(self, apic_id: int) -> Gpa | None:
        """The VMSA that vCPU `apic_id` begins from now, once after each creation."""
        gfn = self._entered.pop(apic_id, None)
        return None if gfn is None else Gpa(gfn << PAGE_SHIFT)

    def state(self, apic_id: int) -> ApState:
        """What vCPU `apic_id` does."""
        if apic_id >= self.vcpus:
            return ApState.ABSENT
        if apic_id not in self._vmsas:
            return ApState.WAITS if apic_id in self._pending else ApState.LAUNCHED
        sfn = self._vmsas[apic_id]
        if sfn == _NOWHERE:
            return ApState.STOPPED
        is_used = not apic_id or (sfn is not None and self._rmp.uses(sfn))
        return ApState.RUNS if is_used else ApState.FAILS

    def ask(
        self, request: int, apic_id: int, vmsa: int, features: int, *, kernel: PscKernel
    ) -> abi.GhcbError | None:
        """One request: both halves of SW_EXITINFO1, SW_EXITINFO2, RAX. Returns why `kernel` refuses
        it, or None. The caller ends the run of a vCPU that names itself."""
        if apic_id >= self.vcpus:
            return abi.GhcbError.INVALID_INPUT
        creates = request in {abi.AP_CREATE, abi.AP_CREATE_ON_INIT}
        allowed = request == abi.AP_DESTROY or (
            creates and _is_right(vmsa) and not self._differing(features, kernel)
        )
        if not allowed:
            if kernel.refusal_stops_ap:
                self._install(apic_id, _NOWHERE)
            return abi.GhcbError.INVALID_INPUT
        if request == abi.AP_CREATE_ON_INIT:
            self._pending[apic_id] = vmsa
        else:
            self._install(apic_id, vmsa if creates else _NOWHERE)
        return None

    def _differing(self, features: int, kernel: PscKernel) -> int:
        differing = features ^ self.features
        return differing if kernel.matches_features else differing & abi.SEV_FEATURE_INJECTION_MODES

    def _install(self, apic_id: int, vmsa: int) -> None:
        """The vCPU leaves the guest, and enters it from another VMSA or not at all."""
        old = self._vmsas.get(apic_id)
        if old is not None and old != _NOWHERE:
            self._rmp.leave(old)
        self._pending.pop(apic_id, None)
        self._entered.pop(apic_id, None)
        if vmsa == _NOWHERE:
            self._vmsas[apic_id] = _NOWHERE
            return
        gfn = vmsa >> PAGE_SHIFT
        can_enter = apic_id and gfn < self._rmp.frames
        self._vmsas[apic_id] = sfn = self._rmp.enter(gfn) if can_enter else None
        if sfn is not None:
            self._entered[apic_id] = gfn


def _is_right(vmsa: int) -> bool:
    """Within MAXPHYADDR and page-aligned; 2 MiB-aligned ones collide with an erratum."""
    return not vmsa & PAGE_MASK and vmsa < _GPA_END and bool(vmsa % PMD_SIZE)
