# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX module's own code: what tdg_mem_page_accept() and td_ept_violation_exit() of release
1.5.01 answered.

The functions were compiled against a Secure EPT of one entry at the 4 KiB level (its walk, its
mapping of pages, VMREAD and the exit to the host replaced); these are their answers, word for word.
A free entry is what a shared page has here; of 2 MiB and 1 GiB the walk finds a table.
"""

from __future__ import annotations

import pytest

from guestemu.machine.sept import (
    ACCEPTED,
    BLOCKED,
    PENDING,
    SHARED,
    AccessEnd,
    AccessKind,
    SecureEpt,
)

GFN = 0
SIZE_MISMATCH = 0xC0000B0B00000001
OPERAND_INVALID = 0xC000010000000001
ALREADY_ACCEPTED = 0x00000B0A00000000
EPT_VIOLATION = None

ANSWERS = [
    (SHARED, 0, EPT_VIOLATION, False),
    (ACCEPTED, 0, ALREADY_ACCEPTED, False),
    (PENDING, 0, 0, True),
    (PENDING | BLOCKED, 0, EPT_VIOLATION, False),
    (ACCEPTED | BLOCKED, 0, ALREADY_ACCEPTED, False),
    *((state, 1, SIZE_MISMATCH, False) for state in (SHARED, ACCEPTED, PENDING)),
    *((state, 2, OPERAND_INVALID, False) for state in (SHARED, ACCEPTED, PENDING)),
]


@pytest.mark.parametrize(("state", "level", "answer", "accepted"), ANSWERS)
def test_accept_answers_as_the_module(
    state: int, level: int, answer: int | None, accepted: bool
) -> None:
    sept = SecureEpt(1)
    sept.load([state])
    assert sept.accept(GFN, level) == answer
    assert (sept.state(GFN) == ACCEPTED) is (accepted or state & ~BLOCKED == ACCEPTED)


PENDING_EXIT = 6
"""VMX_EEQ_PENDING_EPT_VIOLATION, the extended exit qualification of a TD exit; 0: a plain one."""

VIOLATIONS = [
    (SHARED, False, 0),
    (SHARED, True, 0),
    (PENDING, False, "#VE"),
    (PENDING, True, PENDING_EXIT),
    (PENDING | BLOCKED, False, 0),
    (PENDING | BLOCKED, True, 0),
    (ACCEPTED | BLOCKED, False, 0),
    (ACCEPTED | BLOCKED, True, 0),
]
"""State, pending_ve_disable, what the module made of a store by the private alias."""

_ENDS = {
    "#VE": {AccessEnd.VE},
    PENDING_EXIT: {AccessEnd.NOT_ACCEPTED},
    0: {AccessEnd.MEMORY_FAULT, AccessEnd.WRITE_BLOCKED},
}


@pytest.mark.parametrize(("state", "ve_disable", "answer"), VIOLATIONS)
def test_an_ept_violation_ends_as_in_the_module(
    state: int, ve_disable: bool, answer: int | str
) -> None:
    sept = SecureEpt(1, has_ve=not ve_disable)
    sept.load([state])
    assert sept.access(GFN, True, AccessKind.WRITE) in _ENDS[answer]
