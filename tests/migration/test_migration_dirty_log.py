# SPDX-License-Identifier: GPL-2.0-or-later
"""The dirty log over a machine's list of written pages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migration_world import PAGE, PAGES, TEXT, fill, snippet, view

from guestemu.abi.regions import Region
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.migration.dirty_log import DirtyLog

OTHER = PAGE + 1


def test_all_tracked_frames_start_dirty_and_stay_until_cleared() -> None:
    log = DirtyLog(Machine(MachineConfig(frames=PAGES)).ram, {PAGE, OTHER})
    assert log.get() == log.get() == {PAGE, OTHER}
    log.clear({PAGE, 99})
    assert log.get() == {OTHER}


@pytest.mark.parametrize("private", [True, False])
def test_each_store_after_a_clear_is_seen(private: bool) -> None:
    machine = Machine(MachineConfig(frames=PAGES))
    log = DirtyLog(machine.ram, {PAGE, OTHER})
    for _ in range(3):
        log.clear({PAGE, OTHER})
        assert not log.get()
        fill(machine, private)
        assert log.get() == {PAGE}
        fill(machine, private, gfn=OTHER + 1)
        assert log.get() == {PAGE}


def test_a_conversion_between_the_views_is_no_store() -> None:
    machine = Machine(MachineConfig(frames=PAGES))
    fill(machine, private=True)
    log = DirtyLog(machine.ram, {PAGE})
    log.clear({PAGE})
    view(machine, private=False)
    view(machine, private=True)
    assert not log.get()
    fill(machine, private=False)
    log.clear({PAGE})
    view(machine, private=True)
    assert not log.get()


def test_a_guests_store_is_seen_its_load_and_flip_are_not() -> None:
    guest = snippet()
    gfn = guest.gpa(Region.D, 0) >> 12
    guest.memset(guest.gva(Region.D, 0), 1, 4096)
    log = DirtyLog(guest.machine.ram, {gfn})
    log.clear({gfn})
    guest.load(guest.gva(Region.D, 0))
    guest.touch_cbit(guest.gva(Region.D, 0), False)
    guest.load(guest.gva(Region.D, 0))
    assert not log.get()
    guest.memset(guest.gva(Region.D, 0), 1, 1)
    assert log.get() == {gfn}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("wrc"), st.integers(17, 24), st.booleans()), max_size=60))
def test_the_log_is_the_set_of_frames_written_and_rollback_still_works(
    steps: list[tuple[str, int, bool]],
) -> None:
    machine = Machine(MachineConfig(frames=32))
    for gfn in range(17, 25):
        fill(machine, gfn % 2 == 0, gfn=gfn)
    machine.ram.checkpoint()
    base = [view(machine, gfn % 2 == 0, gfn) for gfn in range(17, 25)]
    log = DirtyLog(machine.ram, range(17, 25))
    expected = set(range(17, 25))
    for verb, gfn, private in steps:
        if verb == "w":
            fill(machine, private, TEXT[::-1], gfn)
            expected.add(gfn)
        elif verb == "r":
            view(machine, private, gfn)
        else:
            log.clear({gfn})
            expected.discard(gfn)
        assert log.get() == expected
    machine.ram.rollback()
    assert [view(machine, gfn % 2 == 0, gfn) for gfn in range(17, 25)] == base


def test_the_list_of_written_pages_does_not_overflow() -> None:
    machine = Machine(MachineConfig(frames=32))
    log = DirtyLog(machine.ram, range(17, 25))
    for turn in range(200):
        log.clear(range(17, 25))
        for gfn in range(17, 25):
            fill(machine, turn % 3 == 0, gfn=gfn)
    assert machine.ram.watch.dirty_count <= 64
    assert log.get() == set(range(17, 25))
