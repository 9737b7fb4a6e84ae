# SPDX-License-Identifier: GPL-2.0-or-later
"""The rule of the merged contract that decides a hypercall."""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.events.exits import AnsweredExit

ACCEPTED: Final = "accepted"
LATE_RULES: Final = frozenset({ACCEPTED, "alignment", "empty range", "wrap"})
"""Rules about the range. A call that one of them refuses clears no code: what it did to the range
had no effect."""


def rule_of(record: AnsweredExit) -> str:
    """The rule of the merged contract that decides this hypercall (K3-c)."""
    mask = U64_MASK if record.is_64bit else U32_MASK
    nr, gpa, pages = record.nr & mask, record.args[0] & mask, record.args[1] & mask
    if record.cpl:
        return "privilege"
    if nr != KVM_HC_MAP_GPA_RANGE:
        return "number"
    if gpa & PAGE_MASK:
        return "alignment"
    if not pages:
        return "empty range"
    return ACCEPTED if (gpa >> PAGE_SHIFT) + pages <= U64_MASK else "wrap"
