# SPDX-License-Identifier: GPL-2.0-or-later
"""ACCEPT by the TDX module's own code: what tdg_mem_page_accept() of release 1.5.01 answered.

The function was compiled against a Secure EPT of one entry at the 4 KiB level (its walk, its
mapping of pages and the exit to the host replaced); these are its answers, word for word. A free
entry is what a shared page has here; of 2 MiB and 1 GiB the walk finds a table.
"""

from __future__ import annotations

import pytest

from guestemu.machine.sept import ACCEPTED, BLOCKED, PENDING, SHARED, SecureEpt

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
