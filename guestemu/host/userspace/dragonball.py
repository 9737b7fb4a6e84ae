# SPDX-License-Identifier: GPL-2.0-or-later
"""Kata Dragonball's exit handler of August 2026 (7c6ba40c54ea): V2, V10. TDX guests.

virtio-mem plugs memory without guest_memfd, also for a TD (MemoryRegionFactory::map_to_kvm(),
device_manager/mem_dev_mgr.rs, "plug-plain"); the memory of the start has one
(address_space_manager.rs). Unplugged memory is discarded and its slot stays
(virtio_mem_state_change_request(), dbs_virtio_devices/src/mem.rs).
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.guest_memory import MADV_DONTNEED, MemoryFaultExit, Slot
from guestemu.host.userspace.converting import (
    NO_DISCARD,
    PLUG_PLAIN,
    SIZE_WRAP,
    STALE_RET,
    STOPS_VM,
    ConvertingUserSpace,
    VmmHost,
)


class DragonballUserSpace(ConvertingUserSpace):
    """Sets attributes and frees nothing ("no-discard"): old private data come back with the next
    conversion (GM3)."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Attributes for the full size, without a test of the range."""
        size = self._size(pages)
        if size is None:
            return -EINVAL
        is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        if NO_DISCARD in self._repaired:
            return self._convert_whole(gpa, size, is_private)
        return self._set_attributes(gpa, size, is_private)

    def take_slot(self, slot: Slot) -> int:
        """virtio-mem plugs: the slot may be there from an earlier time."""
        if PLUG_PLAIN not in self._repaired:
            slot = msgspec.structs.replace(slot, has_guest_memfd=False)
        if slot not in self.memory.slots:
            self.memory.plug(slot)
        return 0

    def give_slot(self, slot: Slot) -> int:
        """virtio-mem unplugs: the shared copies go, the slot and its attributes stay."""
        if PLUG_PLAIN in self._repaired:
            self.memory.unplug(slot)
            return 0
        for number, one in enumerate(self.memory.slots):
            if one.gpa == slot.gpa:
                self.memory.madvise(number, 0, one.size, MADV_DONTNEED)
        return 0

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """The handler has no case for this exit: the VM ends."""
        raise self._stop(f"memory fault at {fault.gpa:#x}")


class DragonballHost(VmmHost):
    """KVM under Dragonball."""

    name: ClassVar[str] = "dragonball"
    summary: ClassVar[str] = "merged ABI under Kata Dragonball of 2026: TDX guests"
    handler: ClassVar[type[ConvertingUserSpace]] = DragonballUserSpace
    switches: ClassVar[tuple[str, ...]] = (
        SIZE_WRAP,
        STOPS_VM,
        STALE_RET,
        NO_DISCARD,
        PLUG_PLAIN,
    )
