# SPDX-License-Identifier: GPL-2.0-or-later
"""A correct exit handler, written against the documented interface of `VmmHandler`.

`defects.py` makes a handler with one defect of it by replacing one piece of this text.
"""

from __future__ import annotations

from guestemu.host.handler import VmmHandler
from guestemu.host.kvm.guest_memory import MADV_DONTNEED, PUNCH

PAGE_SHIFT = 12
EINVAL = 22
PRIVATE = 1 << 4
ATTRIBUTE_PRIVATE = 1 << 3


class Handler(VmmHandler):
    """Refuses what is not covered by its slots; attributes first, then the other backing."""

    def map_gpa_range(self, gpa, pages, attributes):
        size = pages << PAGE_SHIFT
        is_private = bool(attributes & PRIVATE)
        if sum(part[3] for part in self.memory.parts(gpa, size)) != size:
            return -EINVAL  # no memory
        word = ATTRIBUTE_PRIVATE if is_private else 0
        error = self.memory.set_memory_attributes(gpa, size, word)
        if error:
            return error
        for number, slot, start, length in self.memory.parts(gpa, size):
            offset = start - slot.gpa
            if is_private:
                error = self.memory.madvise(number, offset, length, MADV_DONTNEED)
            else:
                error = self.memory.fallocate(number, PUNCH, offset + slot.memfd_offset, length)
            if error:
                return error
        return 0
