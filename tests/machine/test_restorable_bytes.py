# SPDX-License-Identifier: GPL-2.0-or-later
"""Page states that a rollback puts back: what was noted, however much, and nothing else."""

from __future__ import annotations

import itertools
import random

import pytest

from guestemu.machine.restorable_bytes import RestorableBytes
from guestemu.machine.rmp import SHARED, VALIDATED, Rmp
from guestemu.machine.view_gates import OPEN, state_runs


@pytest.mark.parametrize("changes", [0, 1, 3, 300, 1000])
def test_a_rollback_undoes_any_number_of_changes(changes: int) -> None:
    rng = random.Random(changes)
    kept = RestorableBytes(bytearray(rng.randbytes(64)))
    kept.checkpoint()
    before = bytes(kept.data)
    for _change in range(changes):
        first, count = rng.randrange(64), rng.randrange(1, 9)
        kept.note(first, count)
        kept.data[first : first + count] = rng.randbytes(len(kept.data[first : first + count]))
    assert bool(kept.rollback()) == bool(changes)
    assert kept.data == before
    assert not kept.rollback()  # and only once


def test_it_costs_what_was_changed() -> None:
    kept = RestorableBytes(bytearray(1 << 20))
    for _time in range(5):
        kept.note(7, 1)
        kept.note(9, 4)
    assert list(kept.rollback()) == [(7, 1), (9, 4)]


def test_a_checkpoint_may_keep_other_bytes_than_there_are() -> None:
    kept = RestorableBytes(bytearray([OPEN | 8] * 4))
    kept.checkpoint(bytes([OPEN] * 4))
    kept.note(2, 1)
    kept.rollback()
    assert kept.data == bytes([OPEN | 8, OPEN | 8, OPEN, OPEN | 8])


@pytest.mark.parametrize("pages", [1, 3, 600])
def test_the_rmp_goes_back_after_each_of_its_instructions(pages: int) -> None:
    rmp = Rmp(1024, spare=8)
    rmp.release(0, 2)
    rmp.checkpoint()
    before = rmp.dump()
    rmp.release(4, pages)
    rmp.assign(0, 1)
    rmp.assign(4, pages)
    rmp.pvalidate(0, False, True)
    rmp.map(1, 1030)
    rmp.rmpadjust(900, False, 1 << 16 | 1)
    assert rmp.enter(900) == 900
    rmp.rollback()
    assert rmp.dump() == before
    assert (rmp.state(0), rmp.state(4), rmp.state(900)) == (SHARED, VALIDATED, VALIDATED)
    assert (rmp.system_frame(1), rmp.entry(900).vmsa) == (1, False)


def test_runs_of_any_states() -> None:
    rng = random.Random(0)
    for _try in range(20):
        states = b"".join(
            bytes([rng.choice((0, 1, 2, 10, *b"]^-\\*", 255))]) * rng.randrange(1, 9)
            for _run in range(30)
        )
        expected = [(state, len([*run])) for state, run in itertools.groupby(states)]
        assert [*state_runs(states)] == [*state_runs(bytearray(states))] == expected
    assert [*state_runs(b"")] == []
