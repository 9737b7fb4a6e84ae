# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts with one bug each, of the kinds that reviews and bug reports of this interface name.

Each is the reference host with one method changed; the file also works as a plug-in,
`--host tests/quality/planted_hosts.py:CLASS`.
"""

from __future__ import annotations

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.hypercalls import KVM_EFAULT, KVM_EINVAL, KVM_ENOSYS, KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import Hypercall, VcpuAccess
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost

_EINVAL = -KVM_EINVAL & U64_MASK


def is_map(call: Hypercall) -> bool:
    number = call.nr if call.is_64bit else call.nr & 0xFFFF_FFFF
    return number == KVM_HC_MAP_GPA_RANGE


class WordBoundary(MapGpaRangeHost):
    """A range that ends with a 64-bit word of the bitmap loses its last page."""

    def hypercall(self, call: Hypercall) -> int:
        end = (call.a0 >> PAGE_SHIFT) + call.a1
        if is_map(call) and call.is_64bit and not call.cpl and call.a1 > 1 and end % 64 == 0:
            call = msgspec.structs.replace(call, a1=call.a1 - 1)
        return super().hypercall(call)


class SecondVcpu(MapGpaRangeHost):
    """Forgets what any vCPU but the first says of an odd number of pages."""

    def hypercall(self, call):
        if call.vcpu.index and is_map(call) and call.a1 & 1:
            return 0
        return super().hypercall(call)


class AttributeBit0(MapGpaRangeHost):
    """Takes bit 0 of the attributes for "encrypted" instead of bit 4."""

    def hypercall(self, call: Hypercall) -> int:
        return super().hypercall(msgspec.structs.replace(call, a2=(call.a2 & 1) << 4))


class Pages16(MapGpaRangeHost):
    """Keeps the number of pages in 16 bits once it was checked."""

    def hypercall(self, call: Hypercall) -> int:
        if is_map(call) and call.a1 & 0xFFFF:
            call = msgspec.structs.replace(call, a1=call.a1 & 0xFFFF)
        return super().hypercall(call)


class LastPage(MapGpaRangeHost):
    """Treats the end of a range as inclusive and so leaves the last page out."""

    def hypercall(self, call: Hypercall) -> int:
        if is_map(call) and call.is_64bit and call.a1 > 1 and call.a0 < 1 << 40 and not call.cpl:
            call = msgspec.structs.replace(call, a1=call.a1 - 1)
        return super().hypercall(call)


class WrongErrno(MapGpaRangeHost):
    """Answers an unaligned address with -EFAULT."""

    def hypercall(self, call: Hypercall) -> int:
        answer = super().hypercall(call)
        is_unaligned = is_map(call) and call.is_64bit and not call.cpl and call.a0 & PAGE_MASK
        return -KVM_EFAULT & U64_MASK if is_unaligned else answer


class LatePrivilege(MapGpaRangeHost):
    """Looks at the arguments before the CPL."""

    def hypercall(self, call: Hypercall) -> int:
        if is_map(call) and call.is_64bit and call.a0 & PAGE_MASK:
            return _EINVAL
        return super().hypercall(call)


class NoPages(MapGpaRangeHost):
    """Takes a range of 0 pages for success."""

    def hypercall(self, call: Hypercall) -> int:
        answer = super().hypercall(call)
        is_empty = is_map(call) and call.is_64bit and not call.cpl and call.a1 == 0
        return 0 if is_empty and not call.a0 & PAGE_MASK else answer


class Wraps(MapGpaRangeHost):
    """Does not see that gfn + pages overflows."""

    def hypercall(self, call: Hypercall) -> int:
        answer = super().hypercall(call)
        wraps = (call.a0 >> PAGE_SHIFT) + call.a1 > U64_MASK
        if is_map(call) and call.is_64bit and not call.cpl and wraps and not call.a0 & PAGE_MASK:
            return 0
        return answer


class NumberOnly32(MapGpaRangeHost):
    """Compares only 32 bits of the hypercall's number in 64-bit mode."""

    def hypercall(self, call: Hypercall) -> int:
        return super().hypercall(msgspec.structs.replace(call, nr=call.nr & 0xFFFF_FFFF))


class NextNumber(MapGpaRangeHost):
    """Answers an unknown number as if it were known."""

    def hypercall(self, call: Hypercall) -> int:
        answer = super().hypercall(call)
        return 0 if call.nr == 13 and answer == -KVM_ENOSYS & U64_MASK else answer


class ReservedBits(MapGpaRangeHost):
    """Drops the reserved bits of MIGRATION_CONTROL instead of refusing them."""

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        if index == MSR_KVM_MIGRATION_CONTROL:
            value &= KVM_MIGRATION_READY
        super().wrmsr(index, value, vcpu)


class ReadsZero(MapGpaRangeHost):
    """MIGRATION_CONTROL can be written and always reads 0."""

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        value = super().rdmsr(index, vcpu)
        return 0 if index == MSR_KVM_MIGRATION_CONTROL else value


class StickyReady(MapGpaRangeHost):
    """READY cannot be taken back."""

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        if value or not self.migration_ready:
            super().wrmsr(index, value, vcpu)


class LargeLeaf(MapGpaRangeHost):
    """Records 511 pages of a 2 MiB leaf."""

    def hypercall(self, call: Hypercall) -> int:
        if call.a1 == 512:
            call = msgspec.structs.replace(call, a1=511)
        return super().hypercall(call)


class EncryptIgnored(MapGpaRangeHost):
    """Forgets to take a page back to private once it was shared."""

    def hypercall(self, call: Hypercall) -> int:
        if is_map(call) and call.is_64bit and not call.cpl and not self.private_map().all():
            call = msgspec.structs.replace(call, a2=0)
        return super().hypercall(call)


class Raises(MapGpaRangeHost):
    """A plug-in that fails at its first hypercall."""

    def hypercall(self, call: Hypercall) -> int:
        raise KeyError("no such slot")
