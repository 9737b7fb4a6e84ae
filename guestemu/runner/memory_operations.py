# SPDX-License-Identifier: GPL-2.0-or-later
"""What operations do to the bytes of guest memory without the guest: a cache that throws lines
out, a VMM that reads and writes through its own mapping (facts E32, C30)."""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.errno import ENOTTY
from guestemu.guest.base import CallOutcome
from guestemu.machine.cache import CachedRam
from guestemu.program.ops import Op, OpKind
from guestemu.runner.operations import OpContext, operation

_WORD: Final = 8


@operation(OpKind.EVICT)
def evict(scene: OpContext, op: Op) -> CallOutcome:
    """Cache lines of one view leave for memory; -ENOTTY on a machine without a cache model."""
    ram = scene.guest.machine.ram
    if not isinstance(ram, CachedRam):
        return CallOutcome(-ENOTTY)
    pages, private = op.arguments
    gpa = scene.guest.gpa(op.region, op.page)
    size = min(pages * PAGE_SIZE, ram.frames * PAGE_SIZE - gpa)
    return CallOutcome(ram.flush_lines(gpa, size, bool(private)) if size else 0)


@operation(OpKind.HOST_READ)
def host_read(scene: OpContext, op: Op) -> CallOutcome:
    """The VMM reads 8 bytes through its own mapping."""
    offset = min(op.arguments[0], PAGE_SIZE - _WORD)
    gpa = Gpa(scene.guest.gpa(op.region, op.page) + offset)
    data = scene.guest.machine.ram.read(gpa, _WORD, private=False)
    return CallOutcome(int.from_bytes(data, "little"))


@operation(OpKind.HOST_WRITE)
def host_write(scene: OpContext, op: Op) -> CallOutcome:
    """The VMM writes through its own mapping, within the page."""
    value, offset, size = op.arguments
    gpa = Gpa(scene.guest.gpa(op.region, op.page) + offset)
    data = bytes([value]) * min(size, PAGE_SIZE - offset)
    if data:
        scene.guest.machine.ram.write(gpa, data, private=False)
    return CallOutcome(0)
