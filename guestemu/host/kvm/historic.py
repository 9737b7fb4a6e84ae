# SPDX-License-Identifier: GPL-2.0-or-later
"""What the never-merged generations have in common: the status hypercall is answered in the kernel.

Source: the KVM "SEV Live Migration Patchset" mails, v1 (2019) to v10 (February 2021); K1-a, K1-m.
The rest of kvm_emulate_hypercall() is that of the kernels the patches were made for: 32-bit
truncation outside 64-bit code, -KVM_EPERM above CPL 0, other numbers answered as today.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_PAGE_ENC_STATUS
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.x86 import VECTOR_GP
from guestemu.host.base import GuestFault, Host, Hypercall, VcpuAccess
from guestemu.host.kvm.base_calls import RAX_EPERM, answer_base_call
from guestemu.host.kvm.findings import FindingLog, ResourceFinding
from guestemu.host.kvm.host import check_switches
from guestemu.host.kvm.kernels import KERNELS
from guestemu.host.kvm.pv_msrs import (
    MSR_KVM_POLL_CONTROL,
    MSR_KVM_WALL_CLOCK_NEW,
    MsrResult,
    PvMsrs,
)
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.kvm.vmcall import fix_instruction

LOW_BITS = "low-bits"


class HistoricHost(Host):
    """A kernel with one of the posted patch sets; `switches` names the defects to repair.

    `number` is the hypercall's number in that patch set. `opt_in_msrs` are the numbers of its
    opt-in MSR (SEV_LIVE_MIG_EN): v5 to v8 were posted with 0x4b564d06, v9 and later with
    0x4b564d08; the models of v6 and v8 take both, so that guests of later postings can be run on
    them. Without the MSR the guest is not asked, and `migration_ready` stays False. `pv_msrs` are
    the MSRs that the kernels of the time had below it.

    The repair "low-bits", common to all, refuses a GPA that is not page-aligned instead of
    dropping its low bits (M43).
    """

    contract: ClassVar[str] = "page-enc-status"
    number: ClassVar[int] = KVM_HC_PAGE_ENC_STATUS
    opt_in_msrs: ClassVar[frozenset[int]] = frozenset({MSR_KVM_MIGRATION_CONTROL})
    pv_msrs: ClassVar[range] = range(MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_POLL_CONTROL + 1)

    def __init__(self, switches: tuple[str, ...] = ()) -> None:
        check_switches(self.name, self.switches, switches)
        self.repaired = frozenset(switches)
        self.reset(0)

    def reset(self, frames: int) -> None:
        """A new SEV VM with one memory slot, [0, frames), and one vCPU."""
        self.frames = frames
        self.is_sev_guest = True
        self.migration_control = 0
        self.log = FindingLog()
        self.settings = VmSettings(KERNELS["5.15"], memory=frames << PAGE_SHIFT)
        self._pv = PvMsrs(self.settings)
        self._state = 0
        self._drops_low_bits = LOW_BITS not in self.repaired
        self.create_vm()

    @abstractmethod
    def create_vm(self) -> None:
        """Builds the generation's own state for a VM with `self.frames` frames."""

    @abstractmethod
    def change_status(self, gfn: int, pages: int, enc: int) -> int:
        """The patch set's handler from gfn on; returns 0, a negative errno, or what was posted."""

    def page_enc_status(self, gpa: int, pages: int, enc: int) -> int:
        """The vendor hook of KVM_HC_PAGE_ENC_STATUS (K1-a): a plain negative errno or 0."""
        if gpa & PAGE_MASK and not self._drops_low_bits:
            return -22
        return self.change_status(gpa >> PAGE_SHIFT, pages, enc)

    def hypercall(self, call: Hypercall) -> int:
        """Emulates VMMCALL or VMCALL; the handler's result goes to RAX as it is (K1-a)."""
        if call.is_vmcall:
            fix_instruction(call, self.settings.disabled_quirks)
        mask = U64_MASK if call.is_64bit else U32_MASK
        nr = call.nr & mask
        if call.cpl:
            self._state = 1
            return RAX_EPERM & mask
        if nr == self.number:
            result = self.page_enc_status(call.a0 & mask, call.a1 & mask, call.a2 & mask)
            self._state = 3 if result == 0 else 4 + (-result & 63)
            return result & mask
        self._state = 2
        arguments = call.a0 & mask, call.a1 & mask, call.a3 & mask
        return answer_base_call(self.settings, nr, arguments) & mask

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """The opt-in MSR as `read_control` gives it, KVM's own MSRs; anything else is #GP."""
        if vcpu.cpl:
            raise GuestFault(VECTOR_GP, 0)
        if index in self.opt_in_msrs:
            return self.read_control()
        if index in self.pv_msrs:
            return self._pv.read(index)
        raise GuestFault(VECTOR_GP, 0)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """The opt-in MSR takes any value: bit 0 enables, bit 1 "extensions", none is refused."""
        if vcpu.cpl:
            raise GuestFault(VECTOR_GP, 0)
        if index in self.opt_in_msrs:
            self.write_control(value)
        elif index not in self.pv_msrs or self._pv.write(index, value) is not MsrResult.DONE:
            raise GuestFault(VECTOR_GP, 0)

    def read_control(self) -> int:
        """RDMSR of the opt-in MSR: what was written (K1-m), or `GuestFault`."""
        return self.migration_control

    def write_control(self, value: int) -> None:
        """WRMSR of the opt-in MSR: kept as it is (K1-m)."""
        self.migration_control = value

    @property
    def migration_ready(self) -> bool:
        """Bit 0 of the opt-in MSR."""
        return bool(self.migration_control & KVM_MIGRATION_READY)

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """Harm to the host since the last reset."""
        return self.log.found

    @property
    def state(self) -> int:
        """1 refused by CPL, 2 another hypercall, 3 done, 4 + errno."""
        return self._state
