# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that converts guest_memfd memory in place, as the documentation of the ioctl asks: GM10.

No released VMM does yet. On -EAGAIN user space is "expected to figure out how to remove all known
refcounts on the shared pages … and try the ioctl again. A possible source … is if the guest_memfd
memory was pinned in IOMMU page tables" (Documentation/virt/kvm/api.rst of the series, v4). So a
range leaves the device map before it becomes private, and what has become shared enters it
afterwards. What lies before `error_offset` is converted, and the rest tried again a few times;
then everything is taken back and the guest told EAGAIN.
"""

from __future__ import annotations

from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.guest_memory import KVM_MEMORY_ATTRIBUTE_PRIVATE, GuestMemory, Slot
from guestemu.host.kvm.in_place_memory import InPlaceMemory
from guestemu.host.userspace.base import UserSpace
from guestemu.host.userspace.converting import (
    STALE_RET,
    STOPS_VM,
    ConvertingUserSpace,
    VmmHost,
)
from guestemu.host.userspace.injection import Injection

TRIES: Final = 4
"""Calls for one part of a range that may find an extra reference."""


class InPlaceUserSpace(ConvertingUserSpace):
    """Refuses a range that its slots with guest_memfd do not cover. Over `InPlaceMemory` only."""

    __slots__ = ()

    memory: InPlaceMemory

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Device map and file, and back again where one of them fails."""
        size = pages << PAGE_SHIFT
        parts = [
            (number, place, start, length)
            for number, place, start, length in self.memory.parts(gpa, size)
            if place.has_guest_memfd
        ]
        if gpa + size > U64_MASK or sum(part[3] for part in parts) != size:
            return -EINVAL
        is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        before = self._attributes_of(gpa, size).copy()
        error = self._unmap(gpa, size) if is_private else 0
        for number, place, start, length in parts:
            error = error or self._convert_part(number, place, start, length, is_private)
        if error:
            self._take_back(gpa, before)
        elif not is_private:
            error = self._map_shared(gpa, size)
            if error:
                self._unmap(gpa, size)
                self._take_back(gpa, before)
        return error

    def _convert_part(self, number: int, place: Slot, gpa: int, size: int, is_private: bool) -> int:
        """What lies in one slot: 0, or the error after which a part may be converted."""
        start = place.offset_of(gpa)
        end = start + size
        for _ in range(TRIES):
            error = self._ask(number, start, end, is_private)
            if error != -EAGAIN:
                return error
            stop = self.memory.error_offset
            if stop > start:
                error = self._ask(number, start, stop, is_private)
                if error:
                    return error
                start = stop
        return -EAGAIN

    def _ask(self, number: int, start: int, end: int, is_private: bool) -> int:
        """The ioctl for the bytes from `start` to `end` of a slot's file."""
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if is_private else 0
        return self.memory.convert(number, start, end - start, attributes)

    def _take_back(self, gpa: int, before: bitarray) -> None:
        """Attributes as `before` from `gpa` on, and the device map with them; ends the VM where
        that fails."""
        for first, end, was_private in _runs(before):
            start, size = gpa + (first << PAGE_SHIFT), end - first << PAGE_SHIFT
            for number, place, part, length in self.memory.parts(start, size):
                if self._convert_part(number, place, part, length, was_private):
                    raise self._stop(f"conversion at GPA {part:#x} cannot be taken back")
        if self._map_shared(gpa, len(before) << PAGE_SHIFT):
            raise self._stop(f"device mapping at GPA {gpa:#x} cannot be taken back")

    def _unmap(self, gpa: int, size: int) -> int:
        return self.memory.map_for_device(gpa, size, False)

    def _map_shared(self, gpa: int, size: int) -> int:
        """Maps the shared frames of a range that are not mapped, run by run."""
        first, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        wanted = ~(self.memory.attributes[first:end] | self.memory.device_map[first:end])
        for start, stop, is_wanted in _runs(wanted):
            if is_wanted:
                place = gpa + (start << PAGE_SHIFT)
                error = self.memory.map_for_device(place, stop - start << PAGE_SHIFT, True)
                if error:
                    return error
        return 0


def _runs(bits: bitarray) -> list[tuple[int, int, bool]]:
    """The runs of equal bits: start, end and value."""
    runs = []
    start = 0
    while start < len(bits):
        value = bool(bits[start])
        end = bits.find(not value, start)
        end = len(bits) if end < 0 else end
        runs.append((start, end, value))
        start = end
    return runs


class InPlaceHost(VmmHost):
    """KVM of the series under a VMM that converts in place."""

    name: ClassVar[str] = "in-place"
    summary: ClassVar[str] = "merged ABI over a guest_memfd that converts in place (GM10)"
    handler: ClassVar[type[ConvertingUserSpace]] = InPlaceUserSpace

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """The handler over fresh memory, all private."""
        memory: GuestMemory = InPlaceMemory(frames, self.memory_slots)
        self.user = self.handler(memory, frozenset({STALE_RET, STOPS_VM}))
        return self.user, self.user.injection
