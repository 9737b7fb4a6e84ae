# SPDX-License-Identifier: GPL-2.0-or-later
"""Page states of a TD: what an access does in each (T12), ACCEPT (T14), what changes them (T11)."""

from __future__ import annotations

import pytest
from bitarray import bitarray

from guestemu.abi import tdx
from guestemu.machine.sept import ACCEPTED, PENDING, SHARED, AccessEnd, AccessKind, SecureEpt

FRAMES = 8
STATES = {ACCEPTED: 0, PENDING: 1, SHARED: 2}
"""A frame in each state."""


def sept(has_ve: bool = False) -> SecureEpt:
    made = SecureEpt(FRAMES, has_ve)
    made.make_shared(1, 2)
    made.make_private(1, 1)
    return made


TABLE = [
    (True, ACCEPTED, AccessEnd.WORKS, AccessEnd.WORKS),
    (True, PENDING, AccessEnd.NOT_ACCEPTED, AccessEnd.VE),
    (True, SHARED, AccessEnd.MEMORY_FAULT, AccessEnd.MEMORY_FAULT),
    (False, ACCEPTED, AccessEnd.MEMORY_FAULT, AccessEnd.MEMORY_FAULT),
    (False, PENDING, AccessEnd.MEMORY_FAULT, AccessEnd.MEMORY_FAULT),
    (False, SHARED, AccessEnd.WORKS, AccessEnd.WORKS),
]
"""Private alias, state, what a load or store comes to with SEPT_VE_DISABLE and without (T12)."""


@pytest.mark.parametrize("kind", [AccessKind.READ, AccessKind.WRITE])
@pytest.mark.parametrize(("private", "state", "disabled", "enabled"), TABLE)
def test_the_access_table(
    private: bool, state: int, disabled: AccessEnd, enabled: AccessEnd, kind: AccessKind
) -> None:
    gfn = STATES[state]
    for has_ve, end in ((False, disabled), (True, enabled)):
        table = sept(has_ve)
        assert table.state(gfn) == state
        assert table.access(gfn, private, kind) is end


@pytest.mark.parametrize("state", STATES)
def test_code_is_never_fetched_from_shared_memory(state: int) -> None:
    assert sept().access(STATES[state], False, AccessKind.FETCH) is AccessEnd.BUGGED


def test_an_address_without_memory_slot_is_mmio() -> None:
    assert sept().access(FRAMES, False, AccessKind.READ) is AccessEnd.VE


def test_a_blocked_page_is_read_and_not_written() -> None:
    table = sept()
    table.block(0, is_blocked=True)
    assert table.describe(0) == "accepted, blocked"
    assert table.access(0, True, AccessKind.READ) is AccessEnd.WORKS
    assert table.access(0, True, AccessKind.WRITE) is AccessEnd.WRITE_BLOCKED
    table.block(0, is_blocked=False)
    assert table.access(0, True, AccessKind.WRITE) is AccessEnd.WORKS


def test_a_shared_page_cannot_be_blocked() -> None:
    table = sept()
    table.block(2, is_blocked=True)
    assert table.describe(2) == "shared"


def test_map_gpa_private_leaves_an_accepted_page_alone() -> None:
    table = sept()
    table.make_private(0, 3)
    assert [table.state(gfn) for gfn in range(3)] == [ACCEPTED, PENDING, PENDING]


def test_accept_takes_a_pending_page_of_4_kib_only() -> None:
    table = sept()
    assert table.accept(1, tdx.LEVEL_4K) == tdx.SUCCESS
    assert table.state(1) == ACCEPTED
    assert table.accept(1, tdx.LEVEL_4K) == tdx.PAGE_ALREADY_ACCEPTED
    assert table.accept(0, tdx.LEVEL_2M) == tdx.PAGE_SIZE_MISMATCH | 1
    assert table.accept(0, tdx.LEVEL_1G) == tdx.OPERAND_INVALID | 1
    assert table.accept(2, tdx.LEVEL_4K) is None


def test_accept_of_a_blocked_page_goes_to_the_host() -> None:
    table = sept()
    table.block(1, is_blocked=True)
    assert table.accept(1, tdx.LEVEL_4K) is None


def test_states_follow_a_hosts_record() -> None:
    table = sept()
    table.follow(0, FRAMES, bitarray("01010101"))
    assert [table.state(gfn) for gfn in range(FRAMES)] == [
        SHARED,
        PENDING,
        SHARED,
        ACCEPTED,
        SHARED,
        ACCEPTED,
        SHARED,
        ACCEPTED,
    ]


def test_rollback_returns_to_the_checkpoint() -> None:
    table = sept()
    table.checkpoint()
    table.make_shared(4, 4)
    table.rollback()
    assert table.shared() == [2]
