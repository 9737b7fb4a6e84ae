# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SET_MSR_FILTER: which guest MSR accesses KVM refuses.

Source: kvm_vm_ioctl_set_msr_filter(), kvm_msr_allowed() (arch/x86/kvm/x86.c, Linux 6.1); K5-b.
"""

from __future__ import annotations

import msgspec

from guestemu.abi.errno import EINVAL
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.host.kvm.uapi import (
    KVM_MSR_FILTER_MAX_BITMAP_SIZE,
    KVM_MSR_FILTER_MAX_RANGES,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
)


class MsrFilterRange(msgspec.Struct, frozen=True, gc=False):
    """`count` MSRs from `base` on: `flags` says which accesses it rules (READ, WRITE).

    Bit i of `bitmap` (an integer, bit 0 first) set allows MSR base + i.
    """

    base: int
    count: int
    flags: int
    bitmap: int


class MsrFilter(msgspec.Struct, frozen=True, gc=False):
    """The filter of a VM. An access that no range rules follows `default_allow`."""

    default_allow: bool = True
    ranges: tuple[MsrFilterRange, ...] = ()

    @property
    def allows_all(self) -> bool:
        """No range and default allow: the same as no filter."""
        return self.default_allow and all(not entry.count for entry in self.ranges)

    def check(self) -> int:
        """The ioctl's result: 0, or -EINVAL for a filter that the kernel refuses."""
        if len(self.ranges) > KVM_MSR_FILTER_MAX_RANGES:
            return -EINVAL
        if not self.default_allow and all(not entry.count for entry in self.ranges):
            return -EINVAL
        for entry in self.ranges:
            if not entry.count:
                continue
            if entry.flags & ~(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE):
                return -EINVAL
            if (entry.count + 63) // 64 * 8 > KVM_MSR_FILTER_MAX_BITMAP_SIZE:
                return -EINVAL
        return 0

    def allows(self, index: int, access: int) -> bool:
        """Whether the guest may access MSR `index`; `access` is READ or WRITE.

        x2APIC MSRs (0x800-0x8ff) are never filtered.
        """
        if 0x800 <= index <= 0x8FF:
            return True
        for entry in self.ranges:
            if entry.base <= index < entry.base + entry.count and entry.flags & access:
                return bool(entry.bitmap >> (index - entry.base) & 1)
        return self.default_allow


def deny_migration_control() -> MsrFilter:
    """The filter by which user space gets MSR_KVM_MIGRATION_CONTROL: denied, all else allowed."""
    access = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE
    entry = MsrFilterRange(MSR_KVM_MIGRATION_CONTROL, 1, access, 0)
    return MsrFilter(default_allow=True, ranges=(entry,))
