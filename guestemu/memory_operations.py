# SPDX-License-Identifier: GPL-2.0-or-later
"""What operations do to the bytes of guest memory without the guest: a cache that throws lines
out, a VMM that reads and writes through its own mapping (facts E32, C30)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.errno import ENOTTY
from guestemu.guest.base import CallOutcome, Guest
from guestemu.machine.cache import CachedRam
from guestemu.program.ops import Op, OpKind

_WORD: Final = 8


def memory_operations(guest: Guest) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
    """What each kind of operation does on `guest`."""
    ram = guest.machine.ram

    def evict(op: Op) -> CallOutcome:
        if not isinstance(ram, CachedRam):
            return CallOutcome(-ENOTTY)
        pages, private = op.arguments
        gpa = guest.gpa(op.region, op.page)
        size = min(pages * PAGE_SIZE, ram.frames * PAGE_SIZE - gpa)
        return CallOutcome(ram.flush_lines(gpa, size, bool(private)) if size else 0)

    def read(op: Op) -> CallOutcome:
        offset = min(op.arguments[0], PAGE_SIZE - _WORD)
        gpa = Gpa(guest.gpa(op.region, op.page) + offset)
        return CallOutcome(int.from_bytes(ram.read(gpa, _WORD, private=False), "little"))

    def write(op: Op) -> CallOutcome:
        value, offset, size = op.arguments
        gpa = Gpa(guest.gpa(op.region, op.page) + offset)
        data = bytes([value]) * min(size, PAGE_SIZE - offset)
        if data:
            ram.write(gpa, data, private=False)
        return CallOutcome(0)

    return {OpKind.EVICT: evict, OpKind.HOST_READ: read, OpKind.HOST_WRITE: write}
