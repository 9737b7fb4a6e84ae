# SPDX-License-Identifier: GPL-2.0-or-later
"""The host side of a VMM of your own, for guestemu: shared ranges kept in a sorted list.

It stands for what your VMM does with KVM_EXIT_HYPERCALL and the MSR exits; put your algorithm here.
"""

from bitarray import bitarray

from guestemu.host.base import GuestFault, Host, Hypercall, VcpuAccess

MAP_GPA_RANGE = 12
ENCRYPTED = 1 << 4
MIGRATION_CONTROL = 0x4B564D08
EPERM, EINVAL, ENOSYS = 1, 22, 1000
U32 = (1 << 32) - 1
U64 = (1 << 64) - 1


class VmmHost(Host):
    """KVM's checks, then a list of shared ranges [first, end)."""

    name = "vmm"
    summary = "a list of shared ranges"
    contract_state = True

    def reset(self, frames: int) -> None:
        """A new VM: everything is private, migration is not allowed."""
        self.frames = frames
        self.shared: list[tuple[int, int]] = []
        self.ready = False

    def hypercall(self, call: Hypercall) -> int:
        """KVM_HC_MAP_GPA_RANGE; every other number is unknown."""
        mask = U64 if call.is_64bit else U32
        return self._answer(call, mask) & mask

    def _answer(self, call: Hypercall, mask: int) -> int:
        gpa, pages, attributes = call.a0 & mask, call.a1 & mask, call.a2 & mask
        first = gpa >> 12
        if call.cpl:
            return -EPERM
        if call.nr & mask != MAP_GPA_RANGE:
            return -ENOSYS
        if gpa & 0xFFF or not pages or first + pages > U64:
            return -EINVAL
        self._cut(first, first + pages)
        if not attributes & ENCRYPTED:
            self.shared = sorted([*self.shared, (first, first + pages)])
        return 0

    def _cut(self, first: int, end: int) -> None:
        """Makes [first, end) private."""
        left: list[tuple[int, int]] = []
        for start, stop in self.shared:
            left += [(start, min(stop, first))] if start < first else []
            left += [(max(start, end), stop)] if stop > end else []
        self.shared = left

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """MSR_KVM_MIGRATION_CONTROL; any other is #GP, all above CPL 0."""
        if vcpu.cpl or index != MIGRATION_CONTROL:
            raise GuestFault(13, 0)
        return int(self.ready)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Bit 0 allows migration; reserved bits are #GP."""
        if vcpu.cpl or index != MIGRATION_CONTROL or value > 1:
            raise GuestFault(13, 0)
        self.ready = bool(value)

    def private_map(self) -> bitarray:
        """One bit for each frame of RAM."""
        bits = bitarray(self.frames, endian="little")
        bits.setall(True)
        for first, end in self.shared:
            bits[first:end] = False
        return bits

    @property
    def migration_ready(self) -> bool:
        """Whether the guest allows its migration."""
        return self.ready
