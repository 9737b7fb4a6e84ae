# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ops of a TD do: calls made by hand, pending events, ACCEPTs that fail."""

from __future__ import annotations

from collections.abc import Callable

from guestemu.abi import tdx
from guestemu.abi.errno import ENOSYS
from guestemu.guest.base import CallOutcome
from guestemu.program.ops import Op, OpKind
from guestemu.runner.operations import OpContext, operation


@operation(OpKind.MAP_GPA)
def map_gpa(scene: OpContext, op: Op) -> CallOutcome:
    """TDG.VP.VMCALL<MapGPA>; -ENOSYS in a guest that is no TD."""
    size, offset, private = op.arguments
    guest = scene.guest
    if guest.td_stub is None:
        return CallOutcome(-ENOSYS)
    gpa = guest.gpa(op.region, op.page) + offset
    return guest.td_stub.map_gpa(gpa, size, bool(private), guest.budget)


@operation(OpKind.PAGE_ACCEPT)
def page_accept(scene: OpContext, op: Op) -> CallOutcome:
    """TDG.MEM.PAGE.ACCEPT; -ENOSYS in a guest that is no TD."""
    level, offset = op.arguments
    guest = scene.guest
    if guest.td_stub is None:
        return CallOutcome(-ENOSYS)
    gpa = guest.gpa(op.region, op.page) + offset
    return guest.td_stub.page_accept(gpa | level, guest.budget)


@operation(OpKind.PENDING_EVENT)
def pending_event(scene: OpContext, op: Op) -> CallOutcome:
    """KVM finds an event pending after each of the next chunks."""
    if scene.guest.td is not None:
        scene.guest.td.pending_events = op.arguments[0]
    return CallOutcome(0)


@operation(OpKind.FAIL_ACCEPT)
def fail_accept(scene: OpContext, op: Op) -> CallOutcome:
    """ACCEPT of 4 KiB pages completes with OPERAND_BUSY from some page on."""
    if scene.guest.td is not None:
        scene.guest.td.accept_error = _busy_after(op.arguments[0])
    return CallOutcome(0)


def _busy_after(after: int) -> Callable[[int, int], int | None]:
    left = after

    def error(_gpa: int, level: int) -> int | None:
        nonlocal left
        if level != tdx.LEVEL_4K:
            return None
        if left:
            left -= 1
            return None
        return tdx.OPERAND_BUSY

    return error
