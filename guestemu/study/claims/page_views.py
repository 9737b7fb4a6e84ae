# SPDX-License-Identifier: GPL-2.0-or-later
"""What both views of a page show at both ends of a migration (facts E30, E31)."""

from __future__ import annotations

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.machine.memory import GuestRam

BothViews = tuple[bytes, bytes]
"""A page through C=1 and through C=0."""


class KeptBytes(msgspec.Struct, frozen=True):
    """Of one page at the target: bytes (of 4096) that each view shows as the source's did."""

    private_kept: int
    shared_kept: int

    @property
    def keeps_private(self) -> bool:
        """A read with C=1 returns what was there."""
        return self.private_kept == PAGE_SIZE

    @property
    def keeps_shared(self) -> bool:
        """A read with C=0 returns what was there."""
        return self.shared_kept == PAGE_SIZE


def both_views(ram: GuestRam, gpa: Gpa) -> BothViews:
    """The page as it is."""
    return ram.read(gpa, PAGE_SIZE), ram.read(gpa, PAGE_SIZE, private=False)


def compare_views(source: BothViews, target: BothViews) -> KeptBytes:
    """What of `source` is at `target`."""
    return KeptBytes(*(_equal(one, other) for one, other in zip(source, target, strict=True)))


def _equal(one: bytes, other: bytes) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))
