# SPDX-License-Identifier: GPL-2.0-or-later
"""libkrun's exit handler of June 2026 (6ed74facc26d): V2, V5, V10. SNP and TDX guests.

Its memory is what it starts with: the source has neither virtio-mem nor another hot-plug.
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.userspace.converting import (
    ATTRIBUTES_FIRST,
    ATTRIBUTES_WORD,
    SIZE_WRAP,
    STALE_RET,
    STOPS_VM,
    ConvertingUserSpace,
    VmmHost,
)


class LibkrunUserSpace(ConvertingUserSpace):
    """Any attribute bit means private ("attributes-word"): a 2 MiB range that becomes shared is
    made private. Only the start has to lie in a slot with guest_memfd."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Attributes for the full size, then the other backing. The worker thread that frees it
        reports a failure and then success (V5); the vCPU thread reads the failure."""
        mask = MAP_GPA_RANGE_ENCRYPTED if ATTRIBUTES_WORD in self._repaired else -1
        size = self._size(pages)
        place = self.memory.slot_at(gpa)
        if size is None or place is None or not place.has_guest_memfd:
            return -EINVAL
        return self._convert_whole(gpa, size, bool(attributes & mask))


class LibkrunHost(VmmHost):
    """KVM under libkrun."""

    name: ClassVar[str] = "libkrun"
    summary: ClassVar[str] = "merged ABI under libkrun of 2026: SNP and TDX guests"
    handler: ClassVar[type[ConvertingUserSpace]] = LibkrunUserSpace
    switches: ClassVar[tuple[str, ...]] = (
        ATTRIBUTES_WORD,
        SIZE_WRAP,
        STOPS_VM,
        STALE_RET,
        ATTRIBUTES_FIRST,
    )
