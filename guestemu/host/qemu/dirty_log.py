# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's dirty log of memory slots, in both modes (D30).

Source: Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG;
virt/kvm/kvm_main.c kvm_clear_dirty_log_protect().
"""

from __future__ import annotations

from bitarray import bitarray

from guestemu.abi.addresses import Gfn
from guestemu.abi.errno import EINVAL
from guestemu.host.qemu.memory_map import KvmSlot, MemoryMap


class QemuDirtyLog:
    """The log of one slot of `pages` pages. Manual: with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""

    def __init__(self, pages: int, *, is_manual: bool) -> None:
        self.pages = pages
        self._is_manual = is_manual
        self._bits = bitarray(pages, endian="little")

    def mark(self, page: int) -> None:
        """The guest (or a device through KVM) wrote page `page` of the slot."""
        self._bits[page] = True

    def get(self) -> bitarray:
        """KVM_GET_DIRTY_LOG: the log; clears it and protects its pages unless manual."""
        found = self._bits.copy()
        if not self._is_manual:
            self._bits.setall(False)
        return found

    def clear(self, first: int, pages: int, bitmap: bitarray) -> int:
        """KVM_CLEAR_DIRTY_LOG: clears the log of those pages of [first, first + pages) whose bit
        is set in `bitmap`, whose bit 0 is page `first`.

        -EINVAL without manual protect; if `first` is not a multiple of 64; if `pages` is none and
        the range does not end with the slot; if it reaches beyond the slot.
        """
        end = first + pages
        if not self._is_manual or first % 64 or first > self.pages or end > self.pages:
            return -EINVAL
        if pages % 64 and end != self.pages:
            return -EINVAL
        self._bits[first:end] &= ~bitmap[:pages]
        return 0


class KvmDirtyLogs:
    """The logs of all slots of a machine, and the slots as they were when logging began.

    `mark` is for the code that runs the guest. A slot that appears later has no log.
    """

    def __init__(self, machine: MemoryMap, *, is_manual: bool = False) -> None:
        self.is_manual = is_manual
        self.slots: tuple[KvmSlot, ...] = machine.slots()
        self.logs = tuple(QemuDirtyLog(slot.pages, is_manual=is_manual) for slot in self.slots)

    def mark(self, gfn: Gfn) -> bool:
        """The guest wrote frame `gfn`; False if no slot has it (MMIO)."""
        for slot, log in zip(self.slots, self.logs, strict=True):
            if slot.gfn <= gfn < slot.gfn + slot.pages:
                log.mark(gfn - slot.gfn)
                return True
        return False
