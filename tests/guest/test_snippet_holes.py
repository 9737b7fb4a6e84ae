# SPDX-License-Identifier: GPL-2.0-or-later
"""Holes in the range of a conversion: populated, not rejected (A26c, as real kernels do)."""

from __future__ import annotations

import pytest
from snippet_machine import (
    BASE,
    PAGE,
    PMD,
    POOL,
    POOL_PAGES,
    PSE,
    PUD,
    RAM,
    VMAP,
    C,
    D,
    G,
    Hang,
    L,
    Machine,
)

ALL = ("5.10", "2020", "5.17", "6.1", "6.12")
MERGED = ALL[2:]
EPERM = -1


@pytest.mark.parametrize("generation", ALL)
def test_a_hole_inside_is_filled_with_the_frame_before(generation: str) -> None:
    m = Machine(generation)
    m.set_entry(BASE + D + 2 * PAGE, 0)
    assert m.decrypt(BASE + D, 5) == 0
    # Executable, and every later page shifted: existing entries are overwritten.
    frames = [0, 1, 1, 2, 3]
    assert [m.leaf(BASE + D + n * PAGE)[0] for n in range(6)] == [
        *(D + frame * PAGE | 0x63 for frame in frames),
        D + 5 * PAGE | 0x63 | C,
    ]
    if generation != "5.10":
        assert [call[1] for call in m.take()] == [D + frame * PAGE for frame in frames]
    assert not m.warnings


def test_encrypting_fills_the_hole_with_the_c_bit() -> None:
    m = Machine()
    m.set_entry(BASE + D + PAGE, 0x60)  # accessed and dirty alone is as good as empty
    assert m.encrypt(BASE + D, 2) == 0
    assert m.leaf(BASE + D + PAGE)[0] == D | 0x63 | C
    assert [call[1:] for call in m.take()] == [(D, 1, 0x10)] * 2


@pytest.mark.parametrize("generation", MERGED)
def test_a_hole_at_the_start_maps_frame_0_and_never_ends(generation: str) -> None:
    m = Machine(generation)
    m.set_entry(BASE + D, 0)
    with pytest.raises(Hang):
        m.decrypt(BASE + D, 3, limit=50_000)
    assert [m.leaf(BASE + D + n * PAGE)[0] for n in range(3)] == [0x63, 0x1063, 0x2063]
    assert m.calls == []


def test_the_patch_set_reports_frame_0() -> None:
    m = Machine("2020")
    m.set_entry(BASE + D, 0)
    assert m.decrypt(BASE + D, 2) == 0
    assert [call[1] for call in m.take()] == [0, PAGE]


def test_a_hole_behind_the_last_page_of_ram() -> None:
    m = Machine()
    assert m.decrypt(BASE + RAM - PAGE, 2) == 0
    assert m.leaf(BASE + RAM - PAGE) == (RAM - PAGE | 0x63, 1)
    assert m.leaf(BASE + RAM) == (RAM - PAGE | 0x63, 1)
    assert m.take() == [(12, RAM - PAGE, 1, 0)] * 2


def test_a_hole_behind_a_leaf_that_needed_no_change_repeats_the_first_page_of_that_step() -> None:
    m = Machine()
    assert m.decrypt(BASE + RAM - PMD, 512) == 0
    assert m.decrypt(BASE + RAM - 3 * PAGE, 4) == 0
    assert m.leaf(BASE + RAM - PMD)[1] == 2
    assert m.leaf(BASE + RAM) == (RAM - 3 * PAGE | 0x63, 1)


def test_a_large_leaf_behind_the_hole_is_taken_for_a_table() -> None:
    m = Machine("2020")
    m.set_entry(BASE + L - PAGE, 0)
    m.map(BASE + L, L, 2, 0x63 | 1 << 12 | C)
    m.private[L : L + 24] = b"data" * 6
    assert m.decrypt(BASE + L - 2 * PAGE, 4) == 0
    # Entries are written into the guest's data at the leaf's frame.
    assert [m.read_u64(L + 8 * n) for n in range(2)] == [
        L - PAGE | 0x63,
        L | 0x63,
    ]
    assert m.private[L + 16 : L + 24] == b"datadata"
    assert m.leaf(BASE + L)[1] == 2


def test_new_tables_are_empty_whatever_the_page_held() -> None:
    m = Machine()
    m.private[POOL : POOL + 2 * PAGE] = b"\xff" * 2 * PAGE
    assert m.decrypt(BASE + RAM - PAGE, 2) == 0
    assert m.leaf(BASE + RAM + PAGE) == (0, 1)
    assert m.leaf(BASE + RAM + PMD - PAGE) == (0, 1)


def test_the_rest_of_the_range_gets_large_leaves_where_they_fit() -> None:
    m = Machine()
    # One page of RAM, then the hole up to 2 MiB alignment plus 2 MiB plus one page.
    pages = 1 + 512 + 1
    assert m.decrypt(BASE + RAM - PAGE, pages) == 0
    # The frames count from one below the 2 MiB boundary; a 2 MiB entry drops the low bits.
    assert m.leaf(BASE + RAM) == (RAM - PMD | 0x63 | PSE, 2)
    assert m.leaf(BASE + RAM + PMD) == (RAM - PAGE + PMD | 0x63, 1)
    assert [call[1:3] for call in m.take()] == [
        (RAM - PAGE, 1),
        (RAM - PMD, 512),
        (RAM - PAGE + PMD, 1),
    ]


def test_a_hole_up_to_and_over_a_1g_boundary() -> None:
    m = Machine("2020")
    start = BASE + G + 4 * PUD  # nothing is mapped from here on
    pages = 2 + 262144 + 512 + 1
    assert m.decrypt(start - 2 * PAGE + PUD, pages) == 0
    assert m.leaf(start + PUD - 2 * PAGE) == (0x63, 1)
    assert m.leaf(start + PUD - PAGE) == (PAGE | 0x63, 1)
    assert m.leaf(start + 2 * PUD - PUD) == (0x63 | PSE, 3)
    assert m.leaf(start + 2 * PUD) == (PUD | 0x63 | PSE, 2)
    assert m.leaf(start + 2 * PUD + PMD) == (PUD + PMD + 2 * PAGE | 0x63, 1)
    assert m.leaf(start + 2 * PUD + PMD + PAGE)[0] == 0


def test_a_hole_in_the_vmap_window_converts_the_direct_map_of_the_frames_behind() -> None:
    m = Machine()
    m.set_entry(VMAP + 2 * PAGE, 0)
    assert m.decrypt(VMAP + PAGE, 2) == 0
    assert m.leaf(VMAP + 2 * PAGE)[0] == D + PAGE | 0x63
    # The alias step goes by the frame counter, which has moved one on.
    assert [m.is_private(BASE + D + n * PAGE) for n in range(4)] == [True, False, False, True]


@pytest.mark.parametrize("generation", ALL)
def test_not_present_is_not_a_hole(generation: str) -> None:
    m = Machine(generation)
    va = BASE + D + PAGE
    m.set_entry(va, D + PAGE | 0x162 | C)
    assert m.decrypt(BASE + D, 3) == 0
    # Only attributes change (a non-present entry also loses GLOBAL); the frame is reported.
    assert m.leaf(va)[0] == D + PAGE | 0x62
    assert m.leaf(va + PAGE)[0] == D + 2 * PAGE | 0x63
    if generation != "5.10":
        assert [call[1] for call in m.take()] == [D, D + PAGE, D + 2 * PAGE]
    with pytest.raises(RuntimeError, match="oops 14"):
        m.call("guest_load8", va)
    assert m.info.read("oops_cr2") == va


def test_without_a_page_for_a_table_the_added_entries_go_again() -> None:
    m = Machine("2020")
    m.info.write("pt_fail_after", 1)
    # One table for the first 2 MiB beyond RAM, none for the next.
    va = BASE + RAM + PMD - PAGE
    assert m.decrypt(va, 2) == EPERM
    assert m.leaf(va)[0] == 0
    assert m.leaf(va + PAGE)[0] == 0
    assert m.info.read("pt_pool_left") == POOL_PAGES - 1
    # The empty table was dropped.
    assert m.leaf(va)[1] == 2


def test_unmapping_below_an_empty_entry_clears_frame_0_as_the_kernel_does() -> None:
    m = Machine("2020")
    m.info.write("pt_fail_after", 0)
    m.write_u64(0, 0x1234)
    m.write_u64(8 * 511, 0x5678)
    va = BASE + RAM + PMD - PAGE
    assert m.decrypt(va, 1) == EPERM
    assert m.read_u64(0) == 0x1234
    assert m.read_u64(8 * 511) == 0


def test_minus_one_pages_never_ends_and_ruins_the_direct_map() -> None:
    m = Machine()
    with pytest.raises(Hang):
        m.decrypt(BASE + L, -1, limit=400_000)
    assert m.calls == []
    # Large leaves go round and round over the one table, the first entry of the request included.
    entry, level = m.leaf(BASE + L)
    assert level == 2
    assert entry & 0xFFF == 0x63 | PSE
    assert entry & ~0xFFF != L
