# SPDX-License-Identifier: GPL-2.0-or-later
"""What user space configured on a VM, and the set-up ioctls' results.

Source: kvm_vm_ioctl_enable_cap() and kvm_vcpu_ioctl_enable_cap() (arch/x86/kvm/x86.c, Linux 6.1),
K3-b, K5-b; results recorded from real kernels.
"""

from __future__ import annotations

from guestemu.abi.errno import EINVAL
from guestemu.host.kvm.kernels import KvmKernel
from guestemu.host.kvm.memory_slots import MemorySlots
from guestemu.host.kvm.msr_filter import MsrFilter
from guestemu.host.kvm.uapi import (
    KVM_EXIT_HYPERCALL_VALID_MASK,
    KVM_MSR_EXIT_REASON_VALID_MASK,
)


class VmSettings:
    """Capabilities, CPUID feature bits and MSR filter of one VM with one vCPU.

    `memory` is the RAM size in bytes from GPA 0 on (some MSRs refuse addresses outside RAM);
    `slots`, where user space changes them, has what it made of it. `pairs_clock`: the host's
    clock is its TSC, so that KVM_HC_CLOCK_PAIRING works.
    Each method is one ioctl and returns 0 or a negative errno; a refused ioctl changes nothing.
    """

    __slots__ = (
        "disabled_quirks",
        "enforces_pv_features",
        "hypercall_exits",
        "ignore_msrs",
        "in_kernel_irqchip",
        "kernel",
        "memory",
        "msr_filter",
        "pairs_clock",
        "pv_features",
        "slots",
        "user_space_msr",
    )

    def __init__(
        self,
        kernel: KvmKernel,
        *,
        memory: int,
        in_kernel_irqchip: bool = False,
        ignore_msrs: bool = False,
    ) -> None:
        self.kernel = kernel
        self.memory = memory
        self.slots: MemorySlots | None = None
        self.pairs_clock = False
        self.in_kernel_irqchip = in_kernel_irqchip
        self.ignore_msrs = ignore_msrs
        self.hypercall_exits = 0
        self.pv_features = 0
        self.enforces_pv_features = False
        self.user_space_msr = 0
        self.msr_filter: MsrFilter | None = None
        self.disabled_quirks = 0

    def enable_exit_hypercall(self, mask: int) -> int:
        """KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL): -EINVAL for any bit but 12 (K3-b)."""
        if mask & ~KVM_EXIT_HYPERCALL_VALID_MASK:
            return -EINVAL
        self.hypercall_exits = mask
        return 0

    def enable_user_space_msr(self, mask: int) -> int:
        """KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR): -EINVAL for unknown reason bits (K5-b)."""
        if mask & ~KVM_MSR_EXIT_REASON_VALID_MASK:
            return -EINVAL
        self.user_space_msr = mask
        return 0

    def set_msr_filter(self, msr_filter: MsrFilter) -> int:
        """KVM_X86_SET_MSR_FILTER; results as `MsrFilter.check`."""
        result = msr_filter.check()
        if result == 0:
            self.msr_filter = None if msr_filter.allows_all else msr_filter
        return result

    def disable_quirks(self, mask: int) -> int:
        """KVM_ENABLE_CAP(KVM_CAP_DISABLE_QUIRKS2): -EINVAL for bits the kernel does not know."""
        if mask & ~self.kernel.quirks or not self.kernel.quirks:
            return -EINVAL
        if self.kernel.quirks_stick:
            mask |= self.disabled_quirks
        self.disabled_quirks = mask
        return 0

    def enforce_pv_features(self, enforce: bool) -> int:
        """KVM_ENABLE_CAP(KVM_CAP_ENFORCE_PV_FEATURE_CPUID) on the vCPU."""
        self.enforces_pv_features = enforce
        return 0

    def set_cpuid(self, pv_features: int | None) -> int:
        """KVM_SET_CPUID2 with EAX of the KVM feature leaf; None: there is no KVM leaf.

        The leaf is found by its signature, so a leaf at 0x40000100 counts as well (recorded).
        """
        self.pv_features = 0 if pv_features is None else pv_features
        return 0

    def is_writable(self, gpa: int, size: int) -> bool:
        """Whether KVM can write `size` bytes, a page at most, at `gpa`."""
        if self.slots is None:
            return gpa + size <= self.memory
        return self.slots.is_writable(gpa) and self.slots.is_writable(gpa + size - 1)

    def has_pv_feature(self, bit: int) -> bool:
        """guest_pv_has(): any feature, unless enforcement is on and the CPUID bit is clear."""
        return not self.enforces_pv_features or bool(self.pv_features >> bit & 1)
