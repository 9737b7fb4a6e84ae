# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a VM with guest_memfd, as its user space sees it: slots, attributes, two backings.

A slot has two backings: the private pages lie in a guest_memfd, the shared ones in a mapping of the
VMM. KVM_SET_MEMORY_ATTRIBUTES says which of them a frame uses and moves no content; a page of the
other backing stays until the VMM punches or discards it (GM3). Every call of the VMM is recorded,
so that a check and a lock-step run can compare what two VMMs did.

Source: virt/kvm/kvm_main.c and virt/kvm/guest_memfd.c (Linux 7.3); GM1, GM3 to GM6. The rules
of GM1, GM3 and GM4 ran on a real KVM with software-protected VMs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol, runtime_checkable

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EFBIG, EINVAL, EOPNOTSUPP
from guestemu.host.intervals import IntervalSet

KVM_MEMORY_ATTRIBUTE_PRIVATE: Final = 1 << 3
KVM_MEMORY_EXIT_FLAG_PRIVATE: Final = 1 << 3

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
PUNCH: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
MADV_DONTNEED: Final = 4

_SIGN: Final = 1 << 63

SET_ATTRIBUTES: Final = "KVM_SET_MEMORY_ATTRIBUTES"

MAX_CALLS: Final = 4096
"""Calls that are kept; a VMM that makes more of them in one program keeps the first."""


class Slot(msgspec.Struct, frozen=True):
    """A memory slot: `gpa` and `size` in bytes, `memfd_offset` its start in the guest_memfd.

    A slot without guest_memfd is plain RAM, or ROM if it is read-only.
    """

    gpa: int
    size: int
    memfd_offset: int = 0
    has_guest_memfd: bool = True
    is_read_only: bool = False

    @property
    def end(self) -> int:
        """First GPA behind the slot."""
        return self.gpa + self.size

    def offset_of(self, gpa: int) -> int:
        """Where in the guest_memfd the bytes at `gpa` lie."""
        return gpa - self.gpa + self.memfd_offset

    def gpa_of(self, offset: int) -> int:
        """The GPA of what lies at `offset` in the guest_memfd."""
        return self.gpa + offset - self.memfd_offset

    def cut(self, gpa: int, size: int) -> tuple[int, int]:
        """Start and size in bytes of the part of a range that lies in the slot; size 0: none."""
        start = max(gpa, self.gpa)
        return start, max(0, min(gpa + size, self.end) - start)


class VmmCall(msgspec.Struct, frozen=True, gc=False):
    """One call of the VMM into its kernel: name, arguments, 0 or a negative errno."""

    name: str
    arguments: tuple[int, ...]
    result: int


@runtime_checkable
class HasGuestMemory(Protocol):
    """A host whose VM has guest_memfd."""

    @property
    def guest_memory(self) -> GuestMemory:
        """The VM's memory as the host's user space has made it."""


class MemoryFaultExit(msgspec.Struct, frozen=True):
    """KVM_EXIT_MEMORY_FAULT: KVM_RUN returned -EFAULT. `gpa` and `size` in bytes (GM6)."""

    gpa: int
    size: int
    is_private: bool


class GuestMemory:
    """The memory of one VM with `frames` frames of RAM from GPA 0 on.

    `attributes` has one bit for each frame of RAM, 1 = private; `private_pages` and `shared_pages`
    say which frames have a page in each backing; `device_map` which frames a device may reach
    (VFIO); `private_backing` and `shared_backing` which frames a slot has each for. All frames
    start private and backed, as after a launch. `lost` has the frames whose page was freed while
    the attributes named its backing, since `take_lost`. One slot covers all of RAM unless `slots`
    are given. All slots share one guest_memfd of `memfd_bytes`; 0: each slot has one, which ends
    with the slot.
    """

    def __init__(self, frames: int, slots: tuple[Slot, ...] = (), *, memfd_bytes: int = 0) -> None:
        self.frames = frames
        self._memfd_bytes = memfd_bytes
        self.attributes = bitarray(frames, endian="little")
        self.private_pages = bitarray(frames, endian="little")
        self.shared_pages = bitarray(frames, endian="little")
        self.device_map = bitarray(frames, endian="little")
        self.lost = bitarray(frames, endian="little")
        self._first_slots = slots or (Slot(0, frames << PAGE_SHIFT),)
        self.set_slots(self._first_slots)
        self._calls: list[VmmCall] = []
        self._later: list[tuple[Callable[[bytes], Iterator[VmmCall]], bytes]] = []
        self._has_news = False
        self._has_lost = True
        self._beyond = IntervalSet()
        self._failure: tuple[int, int] | None = None
        self.call_count = 0
        """How many calls were made since the last reset."""
        self._is_used = True
        self.has_failed = False
        """Whether an ordered failure has happened."""
        self.restore()

    def _frames_of(self, is_wanted: Callable[[Slot], bool]) -> bitarray:
        found = bitarray(self.frames, endian="little")
        found.setall(False)
        for slot in filter(is_wanted, self.slots):
            self._set(found, slot.gpa, slot.size, True)
        return found

    def set_slots(self, slots: tuple[Slot, ...]) -> None:
        """Has `slots` in place of what there is; attributes and pages stay."""
        self.slots = slots
        self.private_backing = self._frames_of(lambda slot: slot.has_guest_memfd)
        self.shared_backing = self._frames_of(lambda slot: not slot.is_read_only)
        self._backings = (
            (self.shared_pages, self.shared_backing),
            (self.private_pages, self.private_backing),
        )

    def plug(self, slot: Slot) -> None:
        """Has `slot` behind the others, with all its pages private, as QEMU makes them (GM1); one
        without guest_memfd has none."""
        self.set_slots((*self.slots, slot))
        first, end = slot.gpa >> PAGE_SHIFT, min(slot.end >> PAGE_SHIFT, self.frames)
        self.attributes[first:end] = True
        self.private_pages[first:end] = slot.has_guest_memfd
        self.shared_pages[first:end] = False
        self._is_used = True

    def unplug(self, slot: Slot) -> None:
        """`slot` is gone, with its pages in both backings; its attributes stay (GM1), and so does
        the device map, which is the VMM's to change."""
        self.set_slots(tuple(one for one in self.slots if one is not slot))
        self._set(self.private_pages, slot.gpa, slot.size, False)
        self._set(self.shared_pages, slot.gpa, slot.size, False)
        self._is_used = True

    def restore(self) -> None:
        """As a new VM; cheap where no call was made."""
        if self.slots is not self._first_slots:
            self.set_slots(self._first_slots)
        if self._is_used:
            self.attributes.setall(True)
            self.private_pages[:] = self.private_backing
            self.shared_pages.setall(False)
            self.device_map.setall(False)
            if self._has_lost:
                self.lost.setall(False)
                self._has_lost = False
            self._calls.clear()
            self._later.clear()
            self._has_news = False
            if len(self._beyond):
                self._beyond = IntervalSet()
            self.call_count = 0
            self._is_used = False
        self._failure = None
        self.has_failed = False

    def order_failure(self, number: int, errno: int) -> None:
        """Call `number` from now on (0: the next) returns -`errno` and does nothing."""
        self._failure = (self.call_count + number, errno)

    @property
    def ordered_failure(self) -> tuple[int, int] | None:
        """The calls that still succeed before the ordered failure, and its errno."""
        if self._failure is None or self._failure[0] < self.call_count:
            return None
        return self._failure[0] - self.call_count, self._failure[1]

    def _made(self, name: str, arguments: tuple[int, ...], result: int) -> int:
        self._is_used = True
        self._has_news = True
        self.call_count += 1
        calls = self.calls if self._later else self._calls
        if len(calls) < MAX_CALLS:
            calls.append(VmmCall(name, arguments, result))
        return result

    @property
    def calls(self) -> list[VmmCall]:
        """The VMM's calls since the last reset."""
        for decode, calls in self._later:
            self._calls.extend(decode(calls))
        self._later.clear()
        del self._calls[MAX_CALLS:]
        return self._calls

    @property
    def is_failing(self) -> bool:
        """Whether the failure of a call was ordered since the last reset."""
        return self._failure is not None

    def done_elsewhere(
        self,
        calls: bytes,
        count: int,
        is_suspect: bool,
        decode: Callable[[bytes], Iterator[VmmCall]],
    ) -> None:
        """`count` calls were done on the maps by machine code, all with success and none that freed
        what is in use. `decode` makes them of `calls`. `is_suspect`: a frame that they converted is
        not as the check of guest memory demands."""
        self._is_used = True
        self.call_count += count
        self._has_news = self._has_news or is_suspect
        self._later.append((decode, calls))

    def take_news(self) -> bool:
        """Whether there is something to judge since this was asked last: a call that was not done
        elsewhere, or a suspect one."""
        has_news, self._has_news = self._has_news, False
        return has_news

    def _ordered(self) -> int:
        """The ordered result of the call that is being made, 0 if there is none."""
        if self._failure is not None and self._failure[0] == self.call_count:
            self.has_failed = True
            return -self._failure[1]
        return 0

    # Calls of the VMM -------------------------------------------------------------------------

    def set_memory_attributes(self, gpa: int, size: int, attributes: int, flags: int = 0) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES: 0, or -EINVAL by the tests of GM1, in their order.

        Accepts a range without memory, and one over several slots. `gpa` and `size` are unsigned
        64-bit values in bytes.
        """
        arguments = (gpa, size, attributes, flags)
        result = 0 if self._failure is None else self._ordered()
        if not result:
            result = _attributes_error(gpa, size, attributes, flags)
        if not result:
            is_private = attributes != 0
            frames = self.frames
            first, end = gpa >> PAGE_SHIFT, (gpa + size) >> PAGE_SHIFT
            if end > frames:
                change = self._beyond.add if is_private else self._beyond.remove
                change(max(first, frames), end)
                end = frames
            if first < end:
                self.attributes[first:end] = is_private
                # The guest uses what it converted: the page appears in the backing of its new kind.
                pages, backing = self._backings[is_private]
                if backing.find(0, first, end) < 0:
                    pages[first:end] = True
                else:
                    pages[first:end] |= backing[first:end]
        return self._made(SET_ATTRIBUTES, arguments, result)

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> int:
        """Changes the guest_memfd of `slots[slot]`, offset within the file in bytes (GM4).

        Punching frees the pages of the file; a hole beyond the file's end succeeds.
        """
        arguments = (slot, mode, offset, length)
        result = 0 if self._failure is None else self._ordered()
        if not result:
            result = self._fallocate(slot, mode, offset, length)
        return self._made("fallocate", arguments, result)

    def _fallocate(self, slot: int, mode: int, offset: int, length: int) -> int:
        place = self.slots[slot] if 0 <= slot < len(self.slots) else None
        if place is None or not place.has_guest_memfd:
            return -EINVAL
        if not 0 < length < _SIGN or not 0 <= offset < _SIGN:
            return -EINVAL
        if not mode & FALLOC_FL_KEEP_SIZE or mode & ~PUNCH:
            return -EOPNOTSUPP
        if offset + length >= _SIGN:
            return -EFBIG
        if (offset | length) & PAGE_MASK:
            return -EINVAL
        is_punch = bool(mode & FALLOC_FL_PUNCH_HOLE)
        if not is_punch and offset + length > (
            self._memfd_bytes or place.memfd_offset + place.size
        ):
            return -EINVAL
        start = place.gpa_of(offset)
        if not self._memfd_bytes and start >= place.gpa and start + length <= place.end:
            self._change(start, length, True, is_punch)
            return 0
        for one in self.slots if self._memfd_bytes else (place,):
            if one.has_guest_memfd:
                start, size = one.cut(one.gpa + offset - one.memfd_offset, length)
                self._change(start, size, True, is_punch)
        return 0

    def _change(self, gpa: int, size: int, is_private: bool, is_free: bool) -> None:
        """Frees or allocates the pages of a range in one backing; notes those freed in use."""
        first, end = gpa >> PAGE_SHIFT, min((gpa + size) >> PAGE_SHIFT, self.frames)
        if first >= end:
            return
        pages = self.private_pages if is_private else self.shared_pages
        if is_free and self.attributes.find(is_private, first, end) >= 0:
            used = pages[first:end]
            used &= self.attributes[first:end] if is_private else ~self.attributes[first:end]
            if used.any():
                self.lost[first:end] |= used
                self._has_lost = True
        pages[first:end] = not is_free

    def range_of(self, call: VmmCall) -> tuple[int, int] | None:
        """The frames, first and end, that a conversion names; None for another call."""
        if call.name != SET_ATTRIBUTES:
            return None
        gpa, size = call.arguments[:2]
        return gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT

    def take_lost(self) -> bitarray | None:
        """`lost` with no frame left in it afterwards; None where there is none."""
        if not self._has_lost:
            return None
        self._has_lost = False
        lost = self.lost.copy()
        self.lost.setall(False)
        return lost

    def madvise(self, slot: int, offset: int, length: int, advice: int) -> int:
        """Advises on the VMM's mapping of `slots[slot]`, `offset` from its start in bytes.

        MADV_DONTNEED frees the shared pages; a range outside the mapping is -EINVAL, as the models
        have nothing mapped behind a slot.
        """
        result = 0 if self._failure is None else self._ordered()
        if not result:
            place = self.slots[slot] if 0 <= slot < len(self.slots) else None
            if place is None or offset + length > place.size or offset & PAGE_MASK:
                result = -EINVAL
            elif advice == MADV_DONTNEED:
                size = length + PAGE_MASK & ~PAGE_MASK
                self._change(place.gpa + offset, size, False, True)
        return self._made("madvise", (slot, offset, length, advice), result)

    def pre_fault(self, gpa: int, size: int) -> int:
        """KVM_PRE_FAULT_MEMORY: populates the backing that the attributes name."""
        result = self._ordered()
        if not result and (
            gpa & PAGE_MASK or size & PAGE_MASK or not size or gpa + size > U64_MASK
        ):
            result = -EINVAL
        if not result:
            for place in self.slots:
                start, length = place.cut(gpa, size)
                first, end = start >> PAGE_SHIFT, (start + length) >> PAGE_SHIFT
                part = self.attributes[first:end]
                self.private_pages[first:end] |= part & self.private_backing[first:end]
                self.shared_pages[first:end] |= ~part & self.shared_backing[first:end]
        return self._made("KVM_PRE_FAULT_MEMORY", (gpa, size), result)

    def map_for_device(self, gpa: int, size: int, is_mapped: bool) -> int:
        """VFIO_IOMMU_MAP_DMA or UNMAP_DMA of shared memory, bytes."""
        result = self._ordered()
        if not result:
            self._set(self.device_map, gpa, size, is_mapped)
        name = "VFIO_IOMMU_MAP_DMA" if is_mapped else "VFIO_IOMMU_UNMAP_DMA"
        return self._made(name, (gpa, size), result)

    def _set(self, bits: bitarray, gpa: int, size: int, value: bool) -> None:
        first = gpa >> PAGE_SHIFT
        if first < self.frames:
            bits[first : min((gpa + size) >> PAGE_SHIFT, self.frames)] = value

    # What the guest meets ---------------------------------------------------------------------

    def is_private(self, gfn: int) -> bool:
        """The attribute of a frame, in RAM or beyond it."""
        return bool(self.attributes[gfn]) if gfn < self.frames else gfn in self._beyond

    def slot_at(self, gpa: int) -> Slot | None:
        """The slot that holds `gpa`."""
        return next((place for place in self.slots if place.gpa <= gpa < place.end), None)

    def parts(self, gpa: int, size: int) -> Iterator[tuple[int, Slot, int, int]]:
        """The slots that a range touches: number, slot, start GPA and size of the part in bytes."""
        for number, place in enumerate(self.slots):
            start, length = place.cut(gpa, size)
            if length:
                yield number, place, start, length

    def access(
        self, gpa: int, is_private: bool, by_attribute: bool = False
    ) -> MemoryFaultExit | None:
        """The exit that a guest's access to the page at `gpa` causes; None: served, or MMIO (GM6).

        `by_attribute`: the VM is software-protected, where the attribute alone decides the kind.
        """
        page = gpa & ~PAGE_MASK
        gfn = gpa >> PAGE_SHIFT
        place = self.slot_at(gpa)
        kind = self.is_private(gfn) if by_attribute else is_private
        if kind and (place is None or not place.has_guest_memfd):
            return MemoryFaultExit(page, PAGE_MASK + 1, True)
        if place is None:
            return None
        if kind != self.is_private(gfn):
            return MemoryFaultExit(page, PAGE_MASK + 1, kind)
        pages = self.private_pages if kind else self.shared_pages
        if gfn < self.frames:
            pages[gfn] = True
            self._is_used = True
        return None


def _attributes_error(gpa: int, size: int, attributes: int, flags: int) -> int:
    if flags or attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE or not size:
        return -EINVAL
    return -EINVAL if gpa + size > U64_MASK or (gpa | size) & PAGE_MASK else 0
