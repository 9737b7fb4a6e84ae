# SPDX-License-Identifier: GPL-2.0-or-later
"""Which register's upper bits a host did not look at, from its answer and its record."""

from __future__ import annotations

import pytest
from bitarray import bitarray

from guestemu.abi.hypercalls import KVM_EINVAL, KVM_ENOSYS, KVM_EPERM
from guestemu.campaign.triage.lost_bits import lost_bits
from guestemu.events.exits import HypercallExit

FRAMES = 32
U64 = (1 << 64) - 1
HIGH = 1 << 60


def call(
    gpa: int = 0x4000,
    pages: int = 4,
    word: int = 0,
    ret: int = 0,
    nr: int = 12,
    cpl: int = 0,
    is_64bit: bool = True,
) -> HypercallExit:
    return HypercallExit(nr, (gpa, pages, word, 0), ret & U64, 0, cpl, is_64bit)


def record(shared: range = range(0), frames: int = FRAMES) -> bitarray:
    """All private but the frames `shared`."""
    bits = bitarray("1") * frames
    bits[shared.start : shared.stop] = False
    return bits


FOUR = range(4, 8)


@pytest.mark.parametrize(
    ("done", "before", "after", "expected"),
    [
        # nothing is cut: the contract's own answer explains nothing
        (call(), record(), record(FOUR), ("", False)),
        (call(ret=-KVM_EINVAL), record(), record(), ("", False)),
        # a number that is 12 in its lower bits
        (call(nr=12 | 1 << 8), record(), record(FOUR), ("number", True)),
        (call(nr=12 | 1 << 16), record(), record(FOUR), ("number", True)),
        (call(nr=12 | 1 << 32), record(), record(FOUR), ("number", True)),
        (call(nr=12 | HIGH), record(), record(range(5, 6)), ("number", True)),
        (call(nr=12 | HIGH, ret=-KVM_ENOSYS), record(), record(), ("", False)),
        # an address, for each width on its own
        (call(gpa=0x4000 | 1 << 31), record(), record(FOUR), ("address", True)),
        (call(gpa=0x4000 | 1 << 51), record(), record(FOUR), ("address", True)),
        (call(gpa=0x4000 | 1 << 52), record(), record(FOUR), ("address", True)),
        (call(gpa=0x4000 | 1 << 30), record(), record(FOUR), ("", False)),
        (call(gpa=0x4000 | 1 << 40), record(), record(range(5, 8)), ("", False)),
        # a page count, also one of which eight bits are left
        (call(pages=4 | 1 << 8), record(), record(FOUR), ("page count", True)),
        (call(pages=4 | 1 << 16), record(), record(FOUR), ("page count", True)),
        (call(pages=4 | 1 << 33), record(), record(FOUR), ("page count", True)),
        (call(pages=4 | 1 << 52), record(), record(FOUR), ("page count", True)),
        (call(pages=1 << 32, ret=-KVM_EINVAL), record(), record(), ("page count", True)),
        (call(pages=1 << 32), record(), record(), ("page count", False)),
        (call(pages=3 | 1 << 16), record(), record(range(4, 7)), ("page count", True)),
        (call(pages=1 << 32, ret=-KVM_EINVAL), record(), record(FOUR), ("", False)),
        # another number that is refused: a host that ignores it explains nothing
        (call(nr=13 | 1 << 8), record(), record(), ("", False)),
        # attributes: with a cut bit 4 would still be 0
        (call(word=0x10 | 1 << 8), record(FOUR), record(), ("attributes", True)),
        (call(word=1 << 32), record(), record(FOUR), ("attributes", True)),
        # a range that ends at the end of RAM
        (call(gpa=30 << 12 | 1 << 40), record(), record(range(30, 32)), ("address", True)),
        (call(gpa=31 << 12 | 1 << 40, pages=1), record(), record(range(31, 32)), ("address", True)),
        # a call of a kernel's own: answered, nothing recorded
        (call(nr=11 | 1 << 32), record(), record(), ("number", True)),
        (call(nr=11 | 1 << 32, ret=-KVM_ENOSYS), record(), record(), ("", False)),
        (call(nr=11 | 1 << 32), record(), record(FOUR), ("", False)),
        # from user mode it is refused whatever its number is
        (call(nr=11 | 1 << 32, cpl=3, ret=-KVM_EPERM), record(), record(), ("number", True)),
        # 32 bits: only those are looked at
        (call(gpa=0x4000 | HIGH, is_64bit=False), record(), record(FOUR), ("", False)),
        (
            call(gpa=0x4000 | 1 << 31, is_64bit=False),
            record(),
            record(FOUR),
            ("address", True),
        ),
        # a range that wraps: a host without that test does the same as one that cuts the count
        (
            call(gpa=0x4000, pages=U64),
            record(),
            record(range(4, 32)),
            ("page count", False),
        ),
        (
            call(gpa=0x4000, pages=U64, word=0x10),
            record(FOUR),
            record(),
            ("page count", False),
        ),
    ],
)
def test_the_register_that_was_cut(
    done: HypercallExit, before: bitarray, after: bitarray, expected: tuple[str, bool]
) -> None:
    assert lost_bits(done, before, after) == expected
    assert before in (record(), record(FOUR)), "the record before is left as it was"


@pytest.mark.parametrize(
    ("pages", "end"),
    [
        (4 | 1 << 14 | 1 << 16, 4 + (4 | 1 << 14)),
        (4 | 1 << 18 | 1 << 20, 4 + (4 | 1 << 18)),
        (4 | 1 << 22 | 1 << 24, 4 + (4 | 1 << 22)),
        (4 | 1 << 24 | 1 << 31, 4 + (4 | 1 << 24)),
    ],
)
def test_page_counts_of_large_guests(pages: int, end: int) -> None:
    frames = 1 << 25
    after = record(range(4, end), frames)
    assert lost_bits(call(pages=pages), record(frames=frames), after) == ("page count", True)


def test_an_address_of_a_large_guest() -> None:
    """Cut to 32 bits it is still another one than cut to 31."""
    frames, first = 1 << 20, 0xC0000
    after = record(range(first, first + 4), frames)
    done = call(gpa=first << 12 | 1 << 32)
    assert lost_bits(done, record(frames=frames), after) == ("address", True)


def test_a_range_that_wraps_and_was_cut_before_the_end_of_ram() -> None:
    frames, first = 1 << 17, 0xFFFF
    after = record(range(first, first + 4), frames)
    done = call(gpa=first << 12, pages=U64 - 0xFFFF + 4)
    assert done.args[1] & 0xFFFF == 4
    assert lost_bits(done, record(frames=frames), after) == ("page count", True)


def test_a_call_without_an_answer_says_nothing() -> None:
    done = HypercallExit(12 | 1 << 32, (0x4000, 4, 0, 0), None, 0, 0, True)
    assert lost_bits(done, record(), record(FOUR)) == ("", False)
