# SPDX-License-Identifier: GPL-2.0-or-later
"""The ops of a TD: its calls, made by hand, and what happens to them between KVM and the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.program.kinds import Argument, OpKind, OpSpec
from guestemu.program.kinds import argument as _a

TD_SPECS: Final[Mapping[OpKind, OpSpec]] = {
    OpKind.MAP_GPA: OpSpec(
        "map_gpa",
        (
            _a("size", Argument.SIZE, 4096),
            _a("offset", Argument.OFFSET),
            _a("private", Argument.FLAG),
        ),
        "TDG.VP.VMCALL<MapGPA> of `size` bytes at the page's GPA + offset, with the shared bit "
        "unless private=1; the result is R10",
        has_page=True,
    ),
    OpKind.PAGE_ACCEPT: OpSpec(
        "page_accept",
        (_a("level", Argument.SLOT), _a("offset", Argument.OFFSET)),
        "TDG.MEM.PAGE.ACCEPT of the page's GPA + offset; level 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB; "
        "the result is RAX",
        has_page=True,
    ),
    OpKind.PENDING_EVENT: OpSpec(
        "pending_event",
        (_a("count", Argument.SMALL, 1),),
        "after each of the next `count` chunks of a MapGPA an event is pending: KVM answers retry",
        is_fault=True,
    ),
    OpKind.FAIL_ACCEPT: OpSpec(
        "fail_accept",
        (_a("after", Argument.SMALL),),
        "ACCEPT of 4 KiB pages completes with OPERAND_BUSY from the one after the next `after` on, "
        "until the next op ends",
        is_fault=True,
    ),
}
"""In a guest that is no TD the calls are -ENOSYS and the faults do nothing."""
