# SPDX-License-Identifier: GPL-2.0-or-later
"""Planted bugs of exit handlers that no released one has, as changes of a repaired one."""

from __future__ import annotations

from typing import ClassVar

from guestemu.host.kvm.guest_memory import MADV_DONTNEED
from guestemu.host.userspace.converting import ConvertingUserSpace
from guestemu.host.userspace.libkrun import LibkrunHost, LibkrunUserSpace


class DiscardAllUserSpace(LibkrunUserSpace):
    """Discards the shared copies of each slot that a range touches, not of the range alone: frames
    that stay shared lose their content (GM3)."""

    __slots__ = ()

    def _discard(self, gpa: int, size: int) -> int:
        error = 0
        for number, place, _, _ in self.memory.parts(gpa, size):
            if place.has_guest_memfd:
                error = error or self.memory.madvise(number, 0, place.size, MADV_DONTNEED)
        return error


class DiscardAllHost(LibkrunHost):
    """libkrun with everything repaired, and this bug."""

    handler: ClassVar[type[ConvertingUserSpace]] = DiscardAllUserSpace

    def __init__(self) -> None:
        super().__init__(switches=LibkrunHost.switches)
