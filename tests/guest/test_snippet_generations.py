# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the generations part: failures, locks, hooks and the known hazards of conversions."""

from __future__ import annotations

import pytest
from snippet_machine import (
    BASE,
    PAGE,
    PMD,
    PUD,
    D,
    G,
    Hang,
    L,
    Machine,
)
from unicorn.x86_const import UC_X86_REG_RIP

ALL = ("5.10", "2020", "5.17", "6.1", "6.12")
NOTIFIERS = ALL[1:]
MERGED = ALL[2:]
ENOMEM, EIO, EBUSY = -12, -5, -16


def test_5_10_converts_and_tells_nobody() -> None:
    m = Machine("5.10")
    assert m.decrypt(BASE + D, 3) == 0
    assert [m.is_private(BASE + D + n * PAGE) for n in range(4)] == [False, False, False, True]
    assert m.calls == []


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_2_gib_in_one_call_are_converted_without_a_hypercall(generation: str) -> None:
    for pages in (1 << 19, 1 << 20):
        m = Machine(generation)
        assert m.decrypt(BASE + G, pages) == 0
        assert [m.is_private(BASE + G + n * PUD) for n in range(4)] == [
            n >= pages * PAGE // PUD for n in range(4)
        ]
        assert m.calls == []
    m = Machine(generation)
    m.map(BASE + G - PUD, G - PUD, 3)
    assert m.decrypt(BASE + G - PUD, (1 << 19) - 1) == 0
    assert m.calls[0] == (12, G - PUD, 262144, 0)


@pytest.mark.parametrize("generation", ALL)
def test_a_failed_split_leaves_the_prefix_converted(generation: str) -> None:
    m = Machine(generation)
    m.info.write("pt_fail_after", 0)
    assert m.decrypt(BASE + L - 2 * PAGE, 3) == ENOMEM
    assert [m.is_private(BASE + L + n * PAGE) for n in (-3, -2, -1, 0)] == [
        True,
        False,
        False,
        True,
    ]
    assert m.leaf(BASE + L)[1] == 2
    # Up to 5.18 the host is told of the whole range, later of nothing.
    told = [call[1:3] for call in m.take()]
    if generation in {"2020", "5.17"}:
        assert told == [(L - 2 * PAGE, 1), (L - PAGE, 1), (L, 512)]
    else:
        assert told == []
    assert not m.warnings
    m.info.write("pt_fail_after", 1)
    assert m.decrypt(BASE + L, 1) == 0
    assert m.info.read("pt_fail_after") == 0
    assert m.decrypt(BASE + L + PMD, 1) == ENOMEM


@pytest.mark.parametrize("generation", ALL)
def test_frame_0_is_an_endless_loop_since_5_17(generation: str) -> None:
    m = Machine(generation)
    if generation in MERGED:
        with pytest.raises(Hang):
            m.decrypt(BASE, 2, limit=50_000)
        assert m.calls == []
        low, high = m.image.address("lookup_address"), m.image.address("set_memory_encrypted")
        assert low <= m.uc.reg_read(UC_X86_REG_RIP) < high  # RIP: still in the notifier's walk
    else:
        assert m.decrypt(BASE, 2, limit=50_000) == 0
        assert len(m.calls) == (2 if generation == "2020" else 0)
    assert not m.is_private(BASE)


@pytest.mark.parametrize("generation", ALL)
def test_an_unknown_level_is_einval(generation: str) -> None:
    m = Machine(generation)
    va = BASE + (1 << 39)
    m.write_u64(m._entry_gpa(va, 4), 0x62)
    if generation == "5.17":
        with pytest.raises(Hang):
            m.decrypt(va, 1, limit=50_000)
        assert m.warnings == ["level"]
    else:
        assert m.decrypt(va, 1) == -22
        assert m.warnings == []
    assert m.calls == []


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_without_the_hook_nobody_is_told(generation: str) -> None:
    m = Machine(generation)
    m.info.write("notify_enabled", 0)
    assert m.decrypt(BASE + D, 1) == 0
    assert m.calls == []


def test_the_callback_of_another_platform_can_fail() -> None:
    old, new = Machine("6.1"), Machine("6.12")
    for m in (old, new):
        m.info.write("finish_status", -22)
    assert old.decrypt(BASE + D, 1) == EIO
    assert old.warnings == []
    assert new.decrypt(BASE + D, 1) == -22
    assert new.decrypt(BASE + D, 1) == -22
    assert new.warnings == ["vmm_fail"]
    assert not old.is_private(BASE + D)
    assert not new.is_private(BASE + D)
    m = Machine("6.12")
    m.info.write("prepare_status", -5)
    assert m.decrypt(BASE + D, 1) == -5
    assert m.is_private(BASE + D)
    assert m.warnings == ["vmm_fail"]
    assert m.info.read("mem_enc_lock") == 0


def test_6_12_stops_conversions_for_good() -> None:
    m = Machine("6.12")
    assert m.decrypt(BASE + D, 1) == 0
    assert m.info.read("mem_enc_lock") == 0
    assert m.call("set_memory_enc_stop_conversion") == 1
    m.take()
    assert m.decrypt(BASE + D + PAGE, 1) == EBUSY
    assert m.encrypt(BASE + D, 1) == EBUSY
    assert m.is_private(BASE + D + PAGE)
    assert m.take() == []
    with pytest.raises(Hang):
        m.call("set_memory_enc_stop_conversion", limit=1000)
    m.info.write("oops_in_progress", 1)
    assert m.call("set_memory_enc_stop_conversion") == 0


def test_a_waiting_writer_keeps_conversions_out() -> None:
    m = Machine("6.12")
    m.info.write("mem_enc_lock", 1)
    with pytest.raises(Hang):
        m.call("set_memory_enc_stop_conversion", limit=1000)
    assert m.decrypt(BASE + D, 1) == EBUSY
