# SPDX-License-Identifier: GPL-2.0-or-later
"""RDMSR and WRMSR of a guest, KVM_GET_MSRS and KVM_SET_MSRS of its user space.

Order for the guest: privilege, filter, KVM's own MSRs, ignore_msrs, exit to user space, #GP.
The ioctls pass neither the filter nor user space. MSRs outside KVM's custom range belong to the
emulated CPU; those that reach this model are unknown to it.

Source: kvm_get_msr_with_filter(), kvm_msr_user_space(), kvm_msr_ignored_check(), do_get_msr()
(arch/x86/kvm/x86.c, Linux 6.1), kvm_do_msr_access() (6.12); K5-a, K5-b; recorded.
"""

from __future__ import annotations

from guestemu.abi.x86 import VECTOR_GP
from guestemu.host.base import GuestFault, VcpuAccess
from guestemu.host.kvm.pv_msrs import MsrResult, PvMsrs
from guestemu.host.kvm.run import KvmRun
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.kvm.uapi import (
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
)
from guestemu.host.userspace.base import UserSpace


class MsrAccess:
    """All ways to an MSR of one VM."""

    __slots__ = ("_run", "_settings", "_user_space", "pv")

    def __init__(self, settings: VmSettings, run: KvmRun, user_space: UserSpace) -> None:
        self._settings = settings
        self._run = run
        self._user_space = user_space
        self.pv = PvMsrs(settings)

    def restore(self) -> None:
        """KVM's own MSRs as at the creation of the vCPU."""
        self.pv.restore()

    def read(self, index: int, vcpu: VcpuAccess) -> int:
        """RDMSR of `index`: EDX:EAX, or `GuestFault` (#GP) as KVM or user space decides."""
        if vcpu.cpl:
            raise GuestFault(VECTOR_GP, 0)
        if not self._is_allowed(index, KVM_MSR_FILTER_READ):
            return self._read_in_user_space(index, KVM_MSR_EXIT_REASON_FILTER, vcpu)
        found = self.pv.find(index)
        if found is MsrResult.DONE:
            return self.pv.read(index)
        if found is MsrResult.UNKNOWN and self._settings.ignore_msrs:
            return 0
        return self._read_in_user_space(index, _reason(found), vcpu)

    def write(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """WRMSR of `value` (EDX:EAX) to `index`, or `GuestFault` (#GP)."""
        if vcpu.cpl:
            raise GuestFault(VECTOR_GP, 0)
        if not self._is_allowed(index, KVM_MSR_FILTER_WRITE):
            self._write_in_user_space(index, value, KVM_MSR_EXIT_REASON_FILTER, vcpu)
            return
        result = self.pv.find(index)
        if result is MsrResult.DONE:
            result = self.pv.write(index, value)
        if result is MsrResult.DONE:
            return
        if result is MsrResult.UNKNOWN and self._settings.ignore_msrs:
            return
        self._write_in_user_space(index, value, _reason(result), vcpu)

    def host_get(self, index: int) -> tuple[int, int]:
        """KVM_GET_MSRS with one entry: (entries processed, the entry's data afterwards).

        A failing entry's data is overwritten with 0 all the same (recorded).
        """
        found = self.pv.find(index)
        if found is MsrResult.DONE:
            return 1, self.pv.read(index)
        return int(self._host_tolerates(index, found, 0)), 0

    def host_set(self, index: int, value: int) -> int:
        """KVM_SET_MSRS with one entry: entries processed."""
        found = self.pv.find(index)
        if found is MsrResult.DONE:
            return int(self.pv.write(index, value) is MsrResult.DONE)
        return int(self._host_tolerates(index, found, value))

    def _host_tolerates(self, index: int, found: MsrResult, value: int) -> bool:
        if found is MsrResult.UNKNOWN and self._settings.ignore_msrs:
            return True
        kernel = self._settings.kernel
        return kernel.host_zero_access and self.pv.is_listed(index) and value == 0

    def _is_allowed(self, index: int, access: int) -> bool:
        msr_filter = self._settings.msr_filter
        return msr_filter is None or msr_filter.allows(index, access)

    def _prepare_exit(self, index: int, value: int, reason: int) -> None:
        """Fills `run->msr`, or raises #GP when user space did not ask for this reason."""
        if not self._settings.user_space_msr & reason:
            raise GuestFault(VECTOR_GP, 0)
        exit_record = self._run.msr
        exit_record.error = 0
        exit_record.reason = reason
        exit_record.index = index
        exit_record.data = value

    def _read_in_user_space(self, index: int, reason: int, vcpu: VcpuAccess) -> int:
        self._prepare_exit(index, 0, reason)
        self._run.exit_reason = KVM_EXIT_X86_RDMSR
        self._user_space.rdmsr_exit(self._run, vcpu)
        if self._run.msr.error:
            raise GuestFault(VECTOR_GP, 0)
        return self._run.msr.data

    def _write_in_user_space(self, index: int, value: int, reason: int, vcpu: VcpuAccess) -> None:
        self._prepare_exit(index, value, reason)
        self._run.exit_reason = KVM_EXIT_X86_WRMSR
        self._user_space.wrmsr_exit(self._run, vcpu)
        if self._run.msr.error:
            raise GuestFault(VECTOR_GP, 0)


def _reason(result: MsrResult) -> int:
    """The exit reason of an access that ended with `result`."""
    if result is MsrResult.UNKNOWN:
        return KVM_MSR_EXIT_REASON_UNKNOWN
    return KVM_MSR_EXIT_REASON_INVAL
