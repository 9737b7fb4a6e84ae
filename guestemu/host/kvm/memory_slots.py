# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_USER_MEMORY_REGION, and KVM_SET_USER_MEMORY_REGION2 with a guest_memfd.

Source: __kvm_set_memory_region(), kvm_vm_ioctl_set_memory_region() (virt/kvm/kvm_main.c),
kvm_gmem_bind() (virt/kvm/guest_memfd.c), kvm_arch_prepare_memory_region() (arch/x86/kvm/x86.c),
Linux 6.1 and 7.3; GM5; held against real kernels.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EEXIST, EINVAL

_USER_SLOTS: Final = 32764
_ADDRESS_SPACES: Final = 2
_MOST_PAGES: Final = (1 << 31) - 1
_LOG_DIRTY: Final = 1 << 0
_READONLY: Final = 1 << 1
KVM_MEM_GUEST_MEMFD: Final = 1 << 2


class MemorySlot(msgspec.Struct, frozen=True):
    """Guest memory from `gpa` on, `size` bytes; `flags` as KVM_MEM_*. `memfd_offset`, in bytes,
    counts with KVM_MEM_GUEST_MEMFD."""

    gpa: int
    size: int
    flags: int = 0
    memfd_offset: int = 0

    @property
    def has_memfd(self) -> bool:
        """Whether private pages of the slot lie in the guest_memfd."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)

    @property
    def is_read_only(self) -> bool:
        """Whether a guest's write is MMIO."""
        return bool(self.flags & _READONLY)

    @property
    def kept(self) -> MemorySlot:
        """As KVM keeps it: without guest_memfd there is no offset."""
        return self if self.has_memfd else msgspec.structs.replace(self, memfd_offset=0)

    def overlaps(self, other: MemorySlot) -> bool:
        """Whether a byte is in both."""
        return self.gpa < other.gpa + other.size and other.gpa < self.gpa + self.size


class MemorySlots:
    """The slots of a VM on a processor with `address_bits` physical address bits, all backed by the
    same memory of the VMM; slot 0 holds `memory` bytes from GPA 0 on.

    With `memfd_bytes` the VM is software-protected and has one guest_memfd of that size; it has one
    address space then, as a VM with private memory has no SMM.
    """

    def __init__(self, memory: int, address_bits: int = 40, memfd_bytes: int = 0) -> None:
        self._most_gfn = (1 << (address_bits - PAGE_SHIFT)) - 1
        self._slots: dict[int, MemorySlot] = {0: MemorySlot(0, memory)}
        self._memfd_bytes = memfd_bytes

    def replace(self, slots: dict[int, MemorySlot]) -> None:
        """Has `slots` in place of what there is, without any test."""
        self._slots = dict(slots)

    def at(self, gpa: int) -> tuple[int, MemorySlot] | None:
        """Number and slot that hold `gpa` in the first address space."""
        for number, slot in self._slots.items():
            if number >> 16 == 0 and slot.gpa <= gpa < slot.gpa + slot.size:
                return number, slot
        return None

    @property
    def all(self) -> tuple[MemorySlot, ...]:
        """Every slot."""
        return tuple(self._slots.values())

    def is_writable(self, gpa: int) -> bool:
        """Whether KVM may write at `gpa`: in a slot of the first address space, not read-only."""
        return any(
            slot.gpa <= gpa < slot.gpa + slot.size and not slot.flags & _READONLY
            for number, slot in self._slots.items()
            if number >> 16 == 0
        )

    def set(self, number: int, new: MemorySlot) -> int:
        """The ioctl for slot `number` (address space in bits 31:16): 0 or a negative errno. Size 0
        deletes. An offset without KVM_MEM_GUEST_MEMFD is not kept: the same slot with another one
        changes nothing."""
        if not self._is_valid(number, new):
            return -EINVAL
        new = new.kept
        old = self._slots.get(number)
        if not new.size:
            if old is None:
                return -EINVAL
            del self._slots[number]
            return 0
        if old is not None:
            kind = _READONLY | KVM_MEM_GUEST_MEMFD
            if new.has_memfd or new.size != old.size or (new.flags ^ old.flags) & kind:
                return -EINVAL
            if new == old:
                return 0
        if (old is None or new.gpa != old.gpa) and self._is_taken(number, new):
            return -EEXIST
        if new.has_memfd and (error := self._binding_error(new)):
            return error
        if (new.gpa + new.size - 1) >> PAGE_SHIFT > self._most_gfn:
            return -EINVAL
        self._slots[number] = new
        return 0

    def _is_taken(self, number: int, new: MemorySlot) -> bool:
        return any(
            other.overlaps(new)
            for key, other in self._slots.items()
            if key != number and key >> 16 == number >> 16
        )

    def _binding_error(self, new: MemorySlot) -> int:
        start, end = new.memfd_offset, new.memfd_offset + new.size
        if end > self._memfd_bytes:
            return -EINVAL
        is_bound = any(
            other.memfd_offset < end and start < other.memfd_offset + other.size
            for other in self._slots.values()
            if other.has_memfd
        )
        return -EEXIST if is_bound else 0

    def _is_valid(self, number: int, new: MemorySlot) -> bool:
        """What is tested before the slots there are."""
        flags = _LOG_DIRTY | _READONLY
        if self._memfd_bytes and new.has_memfd:
            flags = KVM_MEM_GUEST_MEMFD
            if new.memfd_offset & PAGE_MASK or new.memfd_offset + new.size > U64_MASK:
                return False
        spaces = 1 if self._memfd_bytes else _ADDRESS_SPACES
        if number & 0xFFFF >= _USER_SLOTS or number >> 16 >= spaces:
            return False
        if new.flags & ~flags or new.size & PAGE_MASK or new.gpa & PAGE_MASK:
            return False
        return new.gpa + new.size <= U64_MASK and new.size >> PAGE_SHIFT <= _MOST_PAGES
