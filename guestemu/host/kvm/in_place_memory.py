# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a VM whose guest_memfd holds private and shared pages, and converts them in place.

There is one backing. KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd says of a range of the file
which kind it is, and the VMM maps the file for what is shared. A page to become private must have
no reference but the file's own: one that a device may reach is pinned by VFIO, and others come and
go. Then nothing of the range is converted: -EAGAIN, and `error_offset` says where the first such
page lies. To shared nothing stands in the way.

Source: kvm_gmem_set_attributes() and Documentation/virt/kvm/api.rst of "guest_memfd: In-place
conversion support" (v4 to v8, 2026, not in Linux 7.3); vfio_dma_do_map()
(drivers/vfio/vfio_iommu_type1.c); GM10.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EAGAIN, EEXIST, EINVAL
from guestemu.host.kvm.guest_memory import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    SET_ATTRIBUTES,
    GuestMemory,
    Slot,
    VmmCall,
)

SET_ATTRIBUTES2: Final = "KVM_SET_MEMORY_ATTRIBUTES2"
_MAP: Final = "VFIO_IOMMU_MAP_DMA"


class InPlaceMemory(GuestMemory):
    """`GuestMemory` of one backing: `private_pages` and `shared_pages` are the pages of the file by
    their kind. `error_offset` is what the last refused conversion wrote there, in bytes of the
    file."""

    error_offset = 0

    def __init__(self, frames: int, slots: tuple[Slot, ...] = ()) -> None:
        self._pins: dict[int, int] = {}
        super().__init__(frames, slots)

    def restore(self) -> None:
        """As a new VM, without extra references."""
        super().restore()
        self._pins.clear()
        self.error_offset = 0

    def pin(self, gfn: int, conversions: int) -> None:
        """The page of frame `gfn` has an extra reference until `conversions` conversions were
        refused for it; 0: it has none."""
        if conversions:
            self._pins[gfn] = conversions
        else:
            self._pins.pop(gfn, None)

    @property
    def has_device(self) -> bool:
        """Whether the VMM has mapped something for a device since the last reset."""
        return any(call.name == _MAP and not call.result for call in self.calls)

    def set_memory_attributes(self, gpa: int, size: int, attributes: int, flags: int = 0) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES on the VM, which no attribute is left to: -EINVAL but for 0,
        which changes nothing."""
        result = self._ordered() or (-EINVAL if flags or attributes or not size else 0)
        return self._made(SET_ATTRIBUTES, (gpa, size, attributes, flags), result)

    def convert(self, slot: int, offset: int, size: int, attributes: int, flags: int = 0) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd of `slots[slot]`, `offset` and `size` in
        bytes of the file: 0, -EINVAL, or -EAGAIN with `error_offset`; nothing changed on error."""
        result = self._ordered()
        if not result:
            result = self._convert(slot, offset, size, attributes, flags)
        return self._made(SET_ATTRIBUTES2, (slot, offset, size, attributes, flags), result)

    def _convert(self, slot: int, offset: int, size: int, attributes: int, flags: int) -> int:
        place = self.slots[slot] if 0 <= slot < len(self.slots) else None
        if place is None or not place.has_guest_memfd:
            return -EINVAL
        if flags or attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE or (offset | size) & PAGE_MASK:
            return -EINVAL
        if not size or offset < place.memfd_offset or _end(offset, size) > _end_of(place):
            return -EINVAL
        first = place.gpa_of(offset) >> PAGE_SHIFT
        end = first + (size >> PAGE_SHIFT)
        is_private = attributes != 0
        if self.attributes.find(not is_private, first, end) < 0:
            return 0
        held = self._held(first, end) if is_private else None
        if held is not None:
            self.error_offset = place.offset_of(held << PAGE_SHIFT)
            return -EAGAIN
        self.attributes[first:end] = is_private
        self.private_pages[first:end] = is_private
        self.shared_pages[first:end] = not is_private
        return 0

    def _held(self, first: int, end: int) -> int | None:
        """The first frame with an extra reference, which the refusal may be the end of."""
        found = [gfn for gfn in self._pins if first <= gfn < end]
        mapped = self.device_map.find(1, first, end)
        gfn = min((*found, mapped) if mapped >= 0 else found, default=None)
        if gfn in self._pins:
            self.has_failed = True
            self.pin(gfn, self._pins[gfn] - 1)
        return gfn

    def range_of(self, call: VmmCall) -> tuple[int, int] | None:
        """The frames, first and end, that a conversion names; None for another call."""
        if call.name != SET_ATTRIBUTES2 or not 0 <= call.arguments[0] < len(self.slots):
            return super().range_of(call)
        slot, offset, size = call.arguments[:3]
        place = self.slots[slot]
        start, length = place.cut(place.gpa_of(offset), size)
        return start >> PAGE_SHIFT, start + length >> PAGE_SHIFT

    def map_for_device(self, gpa: int, size: int, is_mapped: bool) -> int:
        """As of every VM; -EEXIST for a range of which a part is mapped already."""
        first, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        if is_mapped and self.device_map.find(1, first, end) >= 0:
            return self._made(_MAP, (gpa, size), -EEXIST)
        return super().map_for_device(gpa, size, is_mapped)

    def _change(self, gpa: int, size: int, is_private: bool, is_free: bool) -> None:
        """The file's pages, whatever their kind; those of the mapping are the file's."""
        if is_private:
            super()._change(gpa, size, True, is_free)
            super()._change(gpa, size, False, is_free)
            first, end = gpa >> PAGE_SHIFT, min(gpa + size >> PAGE_SHIFT, self.frames)
            if not is_free and first < end:
                self.private_pages[first:end] &= self.attributes[first:end]
                self.shared_pages[first:end] &= ~self.attributes[first:end]


def _end(offset: int, size: int) -> int:
    """The end of a range; one that wraps ends behind every file."""
    return offset + size if offset + size <= U64_MASK else U64_MASK + 1


def _end_of(place: Slot) -> int:
    return place.memfd_offset + place.size
