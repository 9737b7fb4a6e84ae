# SPDX-License-Identifier: GPL-2.0-or-later
"""Kata Dragonball's exit handler of August 2026 (7c6ba40c54ea): V2, V10. TDX guests."""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.guest_memory import MemoryFaultExit
from guestemu.host.userspace.converting import (
    NO_DISCARD,
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

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """The handler has no case for this exit: the VM ends."""
        raise self._stop(f"memory fault at {fault.gpa:#x}")


class DragonballHost(VmmHost):
    """KVM under Dragonball."""

    name: ClassVar[str] = "dragonball"
    summary: ClassVar[str] = "merged ABI under Kata Dragonball of 2026: TDX guests"
    handler: ClassVar[type[ConvertingUserSpace]] = DragonballUserSpace
    switches: ClassVar[tuple[str, ...]] = (SIZE_WRAP, STOPS_VM, STALE_RET, NO_DISCARD)
