# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU 11's exit handler, kvm_convert_memory() of 2026 (00001a22d183): V2, V3, V10.

As QEMU 10.2, with RamBlockAttributes: a map of its own whose listeners (VFIO) follow each
conversion, and KVM_PRE_FAULT_MEMORY at the end, whose errors are ignored. SNP and TDX guests.

A pc-dimm whose memory backend has a guest_memfd can be plugged and unplugged: all of it is private
(kvm_set_phys_mem()), and RamBlockAttributes tells its listeners when it goes. virtio-mem refuses
such a backend, whose RamDiscardManager RamBlockAttributes is (virtio_mem_device_realize(); "Make
RamDiscardManager work with multiple sources", February 2026, would change that).
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.addresses import PAGE_MASK
from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.guest_memory import Slot
from guestemu.host.userspace.converting import (
    ATTRIBUTES_FIRST,
    LISTENER_FAILS,
    SIZE_WRAP,
    STALE_RET,
    STOPS_VM,
    ConvertingUserSpace,
    VmmHost,
)


class Qemu11UserSpace(ConvertingUserSpace):
    """Only the start of a range has to lie in a region; a range over its end has its attributes
    set, then RamBlockAttributes refuses and the VM ends ("attributes-first"). A listener that
    fails ends the VM with the attributes changed ("listener-fails")."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Attributes, RamBlockAttributes with its listeners, discard or punch, pre-fault."""
        size = self._size(pages)
        if not size or gpa & PAGE_MASK:
            return -EINVAL
        is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        place = self.memory.slot_at(gpa)
        if place is None:
            return -EINVAL if is_private else 0
        if not place.has_guest_memfd:
            return -EINVAL
        if ATTRIBUTES_FIRST in self._repaired and gpa + size > place.end:
            return -EINVAL
        before = self._attributes_of(gpa, size)
        error = self._set_attributes(gpa, size, is_private)
        if error:
            return error
        error = self._tell_listeners(place, gpa, size, is_private)
        if error:
            if LISTENER_FAILS in self._repaired and gpa + size <= place.end:
                self._undo(gpa, before)
            return error
        error = self._free_other(gpa, size, is_private)
        if error and ATTRIBUTES_FIRST in self._repaired:
            self._undo(gpa, before)
        if not error:
            self.memory.pre_fault(gpa, size)
        return error

    def take_slot(self, slot: Slot) -> int:
        """A pc-dimm is plugged."""
        self.memory.plug(slot)
        return 0

    def give_slot(self, slot: Slot) -> int:
        """A pc-dimm is unplugged, and unmapped for devices first."""
        error = self.memory.map_for_device(slot.gpa, slot.size, False)
        if not error:
            self.memory.unplug(slot)
        return error

    def _tell_listeners(self, place: Slot, gpa: int, size: int, is_private: bool) -> int:
        if gpa + size > place.end:
            return -EINVAL
        return self.memory.map_for_device(gpa, size, not is_private)


class Qemu11Host(VmmHost):
    """KVM under QEMU 11."""

    name: ClassVar[str] = "qemu-11"
    summary: ClassVar[str] = (
        "merged ABI under QEMU 11: guest_memfd with VFIO listeners, SNP and TDX"
    )
    handler: ClassVar[type[ConvertingUserSpace]] = Qemu11UserSpace
    switches: ClassVar[tuple[str, ...]] = (
        SIZE_WRAP,
        STOPS_VM,
        STALE_RET,
        ATTRIBUTES_FIRST,
        LISTENER_FAILS,
    )
