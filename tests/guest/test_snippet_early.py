# SPDX-License-Identifier: GPL-2.0-or-later
"""Early conversions: contents survive, one notification for the call (A8, A9, A37)."""

from __future__ import annotations

import pytest
from snippet_machine import BASE, PAGE, PMD, PSE, SCRATCH, C, D, Hang, L, Machine

ALL = ("5.10", "2020", "5.17", "6.1", "6.12")
NOTIFIERS = ALL[1:]


def early_decrypt(m: Machine, va: int, size: int) -> int:
    return m.call("early_set_memory_decrypted", va, size)


@pytest.mark.parametrize("generation", ALL)
def test_contents_survive_both_ways(generation: str) -> None:
    m = Machine(generation)
    data = bytes(range(256)) * 16
    m.private[D : D + PAGE] = data
    assert early_decrypt(m, BASE + D, PAGE) == 0
    assert m.leaf(BASE + D)[0] == D | 0x63
    assert m.shared[D : D + PAGE] == data
    assert m.call("guest_load8", BASE + D) == int.from_bytes(data[:8], "little")
    m.shared[D : D + PAGE] = data[::-1]
    assert m.call("early_set_memory_encrypted", BASE + D, PAGE) == 0
    assert m.leaf(BASE + D)[0] == D | 0x63 | C
    assert m.private[D : D + PAGE] == data[::-1]
    assert m.leaf(SCRATCH)[0] == 0
    assert m.leaf(SCRATCH + PAGE)[0] == 0


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_one_notification_behind_all_changes_and_before_the_flush(generation: str) -> None:
    m = Machine(generation, wants_trace=True)
    assert early_decrypt(m, BASE + D, 2 * PAGE) == 0
    assert m.take() == [(12, D, 1, 0), (12, D + PAGE, 1, 0)]
    last_entry = max(n for n, step in enumerate(m.trace) if step == "entry")
    assert m.trace[last_entry + 1 :] == ["hypercall", "hypercall", "global flush"]
    assert m.trace.count("clflush") == 2 * 64


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_an_unaligned_start_reports_a_page_too_many_before_the_fix(generation: str) -> None:
    m = Machine(generation)
    # 64 bytes across no boundary: PAGE_ALIGN(64) from +0x40 ends in the next page.
    assert early_decrypt(m, BASE + D + 0x40, 64) == 0
    assert m.is_private(BASE + D + PAGE)
    told = [call[1] for call in m.take()]
    assert told == ([D] if generation == "6.12" else [D, D + PAGE])


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_a_missing_page_ends_with_1_and_no_notification(generation: str) -> None:
    m = Machine(generation, wants_trace=True)
    m.set_entry(BASE + D + PAGE, 0)
    assert early_decrypt(m, BASE + D, 3 * PAGE) == 1
    assert not m.is_private(BASE + D)
    assert m.is_private(BASE + D + 2 * PAGE)
    assert m.take() == []
    assert m.trace[-1] == "global flush"


def test_whole_large_leaves_are_converted_whole() -> None:
    m = Machine()
    m.private[L + PMD - 8 : L + PMD] = b"contents"
    assert early_decrypt(m, BASE + L, PMD) == 0
    assert m.leaf(BASE + L) == (L | 0x63 | PSE, 2)
    assert m.shared[L + PMD - 8 : L + PMD] == b"contents"
    assert m.take() == [(12, L, 512, 0)]


def test_a_part_of_a_large_leaf_splits_the_whole_range() -> None:
    m = Machine()
    assert early_decrypt(m, BASE + L + PAGE, PMD) == 0
    # Both leaves of the range are split at once, though the flip needs one page of the second.
    assert [m.leaf(BASE + L + n * PMD)[1] for n in range(3)] == [1, 1, 2]
    assert m.is_private(BASE + L)
    assert not m.is_private(BASE + L + PMD)
    assert m.is_private(BASE + L + PMD + PAGE)
    assert len(m.take()) == 512


def test_a_split_that_ends_on_a_boundary_takes_one_leaf_more() -> None:
    m = Machine()
    assert early_decrypt(m, BASE + L + PMD - PAGE, PAGE) == 0
    assert [m.leaf(BASE + L + n * PMD)[1] for n in range(3)] == [1, 1, 2]
    assert m.is_private(BASE + L + PMD)


def test_no_page_for_a_split_is_a_panic() -> None:
    m = Machine()
    m.info.write("pt_fail_after", 0)
    with pytest.raises(RuntimeError, match="oops 6"):
        early_decrypt(m, BASE + L, PAGE)
    assert m.info.read("oops_rip") == m.image.address("bug_early_split")


def test_done_already_copies_nothing_and_is_still_reported() -> None:
    m = Machine(wants_trace=True)
    assert m.call("early_set_memory_encrypted", BASE + D, PAGE) == 0
    assert m.trace == ["hypercall", "global flush"]
    assert m.take() == [(12, D, 1, 0x10)]


@pytest.mark.parametrize("generation", ALL)
def test_frame_0_is_not_converted_since_5_17_and_then_never_ends(generation: str) -> None:
    m = Machine(generation)
    if generation in {"5.10", "2020"}:
        assert m.call("early_set_memory_decrypted", BASE, PAGE) == 0
        assert not m.is_private(BASE)
        return
    with pytest.raises(Hang):
        m.call("early_set_memory_decrypted", BASE, PAGE, limit=50_000)
    assert m.is_private(BASE)
    assert m.calls == []


def test_before_the_hook_only_the_patch_set_notifies() -> None:
    told = {}
    for generation in NOTIFIERS:
        m = Machine(generation)
        m.info.write("notify_enabled", 0)
        assert early_decrypt(m, BASE + D, PAGE) == 0
        told[generation] = len(m.take())
    assert told == {"2020": 1, "5.17": 0, "6.1": 0, "6.12": 0}
