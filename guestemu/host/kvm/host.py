# SPDX-License-Identifier: GPL-2.0-or-later
"""A `Host` made of a merged-generation KVM and a user space over it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Final

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.cpuid import KVM_FEATURE_HC_MAP_GPA_RANGE, KVM_FEATURE_MIGRATION_CONTROL
from guestemu.abi.errors import InputError
from guestemu.host.base import Host, Hypercall, MapGpaRange, VcpuAccess
from guestemu.host.kvm.kernels import DEFAULT_KERNEL, KvmKernel, find_kernel
from guestemu.host.kvm.merged import ExitPath, MergedKvm
from guestemu.host.kvm.msr_filter import deny_migration_control
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.kvm.tdx_map_gpa import KVM_6_16, KVM_7_2, TdxKvm
from guestemu.host.kvm.uapi import KVM_EXIT_HYPERCALL_VALID_MASK, KVM_MSR_EXIT_REASON_FILTER
from guestemu.host.userspace.base import UserSpace
from guestemu.host.userspace.injection import Injection

PV_FEATURES: Final = 1 << KVM_FEATURE_HC_MAP_GPA_RANGE | 1 << KVM_FEATURE_MIGRATION_CONTROL
_USER_STATES_SHIFT: Final = 4


def check_switches(name: str, known: tuple[str, ...], switches: tuple[str, ...]) -> None:
    """Raises `InputError` for a switch that host `name` does not have."""
    for switch in switches:
        if switch not in known:
            choice = f"use one of {', '.join(known)}" if known else "it has none"
            raise InputError(f"host {name}: no repair switch {switch!r}; {choice}")


class MergedHost(Host):
    """KVM >= 5.14 configured as a VMM does for a migratable SEV guest.

    KVM_CAP_EXIT_HYPERCALL is on, a filter sends MIGRATION_CONTROL to user space, CPUID shows
    feature bits 16 and 17. `kernel` is a name in `kernels.KERNELS`; `switches` names the defects
    to repair. Raises `InputError` for an unknown kernel or switch.
    """

    default_kernel: ClassVar[str] = DEFAULT_KERNEL
    choices: ClassVar[tuple[str, ...]] = ()
    """What may stand behind NAME: in place of kernels."""

    def __init__(self, kernel: str | None = None, switches: tuple[str, ...] = ()) -> None:
        check_switches(self.name, self.switches, switches)
        self.kernel: KvmKernel = find_kernel(kernel or self.default_kernel)
        self.repaired = frozenset(switches)
        self.reset(0)

    @abstractmethod
    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """A fresh user space for a VM with `frames` frames, and where faults for it are ordered."""

    def reset(self, frames: int) -> None:
        """A new VM: KVM and user space start over."""
        user_space, self._injection = self.make_user_space(frames)
        settings = VmSettings(self.kernel, memory=frames << PAGE_SHIFT)
        settings.enable_exit_hypercall(KVM_EXIT_HYPERCALL_VALID_MASK)
        settings.enable_user_space_msr(KVM_MSR_EXIT_REASON_FILTER)
        settings.set_msr_filter(deny_migration_control())
        settings.set_cpuid(PV_FEATURES)
        self._frames = frames
        self.kvm = MergedKvm(settings, user_space)
        self._user_space = user_space
        self._answer = self.kvm.hypercall

    def restore(self, frames: int) -> None:
        """As `reset`, undoing what a program changed where user space can do that."""
        if frames == self._frames and self._user_space.restore():
            self.kvm.restore()
            self._injection.withdraw()
        else:
            self.reset(frames)

    def hypercall(self, call: Hypercall) -> int:
        """See `MergedKvm.hypercall`."""
        return self._answer(call)

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """The exit goes straight to user space, as KVM's checks were others; to `hypercall` where a
        user's subclass has its own."""
        if type(self).hypercall is not MergedHost.hypercall:
            return super().map_gpa_range(call)
        return self.kvm.map_gpa_range(call)

    @property
    def tdx_kvm(self) -> TdxKvm:
        """Which KVM carries out a TD's MapGPA: that of 6.18, or of 7.2 for every other kernel."""
        return KVM_6_16 if self.kernel.name == "6.18" else KVM_7_2

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `MsrAccess.read`."""
        self.kvm.path = ExitPath.MSR_FAULT
        value = self.kvm.msrs.read(index, vcpu)
        self.kvm.path = ExitPath.MSR_READ
        return value

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `MsrAccess.write`."""
        self.kvm.path = ExitPath.MSR_FAULT
        self.kvm.msrs.write(index, value, vcpu)
        self.kvm.path = ExitPath.MSR_WRITE

    @property
    def state(self) -> int:
        """The path in KVM (low 4 bits) and in user space."""
        return int(self.kvm.path) | self._user_space.state << _USER_STATES_SHIFT

    def inject_answer(self, value: int, count: int) -> None:
        """See `Injection.order_answer`."""
        self._injection.order_answer(value, count)

    def inject_msr_error(self, count: int) -> None:
        """See `Injection.order_msr_error`."""
        self._injection.order_msr_error(count)
