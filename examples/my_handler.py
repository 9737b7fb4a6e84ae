# SPDX-License-Identifier: GPL-2.0-or-later
"""An exit handler of a VMM: only what happens when KVM_RUN returns. It has a bug.

guestemu hosts --check examples/my_handler.py:MyHandler
guestemu fuzz hypercall --host examples/my_handler.py:MyHandler --time 10
"""

from __future__ import annotations

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.host.handler import VmmHandler
from guestemu.host.kvm.guest_memory import KVM_MEMORY_ATTRIBUTE_PRIVATE, MADV_DONTNEED, PUNCH

EINVAL = 22
PRIVATE = 1 << 4


class MyHandler(VmmHandler):
    """Sets the attributes, then frees the backing that the guest does not use any more."""

    def map_gpa_range(self, gpa: int, pages: int, attributes: int) -> int:
        size = pages << PAGE_SHIFT
        if gpa + size > self.memory.frames << PAGE_SHIFT:
            return -EINVAL
        is_private = bool(attributes & PRIVATE)
        word = KVM_MEMORY_ATTRIBUTE_PRIVATE if is_private else 0
        error = self.memory.set_memory_attributes(gpa, size, word)
        if error:
            return error
        if is_private and pages == 1:
            return 0  # the bug: "one page is not worth a system call"
        for number, slot, start, length in self.memory.parts(gpa, size):
            offset = start - slot.gpa
            if is_private:
                error = self.memory.madvise(number, offset, length, MADV_DONTNEED)
            else:
                error = self.memory.fallocate(number, PUNCH, offset + slot.memfd_offset, length)
            if error:
                return error
        return 0
