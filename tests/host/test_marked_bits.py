# SPDX-License-Identifier: GPL-2.0-or-later
"""A record that knows where it was written is a bitarray, and never says that it is as told where
it is not."""

from __future__ import annotations

import random

import pytest
from bitarray import bitarray

from guestemu.host.marked_bits import MarkedBits
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

SIZE = 96


def full() -> MarkedBits:
    bits = MarkedBits(SIZE, endian="little")
    bits.setall(1)
    bits.begin()
    return bits


def a_range(rng):
    first = rng.randrange(SIZE)
    return first, rng.choice((first, first + rng.randrange(20), SIZE, 1 << 52)), rng.random() < 0.5


def test_it_follows_a_plain_bitarray_and_its_word_is_good():
    rng = random.Random(3)
    bits, plain = full(), bitarray(SIZE * "1", endian="little")
    known = 0
    for _ in range(2000):
        before = bits.begin()
        assert before == plain
        told = [a_range(rng) for _ in range(rng.choice((1, 1, 2)))]
        written = [*told, a_range(rng)] if rng.random() < 0.3 else told
        for first, end, value in written:
            bits[first:end] = value
            plain[first:end] = value
        expected = before.copy()
        for first, end, value in told:
            expected[first:end] = value
        is_told = bits.is_as_told(before, told)
        assert not is_told or bits == expected
        known += is_told
        if rng.random() < 0.2:
            bits.refill(1)
            plain.setall(1)
            assert bits.all()
        assert bits == plain
        assert bits.all() == plain.all()
    assert known > 500


@pytest.mark.parametrize(
    "change",
    [
        lambda bits: bits.setall(0),
        lambda bits: bits.invert(5),
        lambda bits: bits.reverse(),
        lambda bits: bits.sort(),
        lambda bits: bits.append(0),
        lambda bits: bits.pop(),
        lambda bits: bits.__setitem__(slice(3, 5), bitarray("00")),
        lambda bits: bits.__setitem__(slice(None, 7), 0),
        lambda bits: bits.__setitem__(slice(0, 9, 2), 0),
        lambda bits: bits.__setitem__(-1, 0),
        lambda bits: bits.__setitem__([4, 9], 0),
        lambda bits: bits.__delitem__(slice(0, 8)),
        lambda bits: bits.__iand__(bitarray(SIZE, endian="little")),
        lambda bits: bits.__ixor__(bitarray(SIZE * "1", endian="little")),
        lambda bits: bits.__ilshift__(3),
        lambda bits: bits.frombytes(b"\0"),
    ],
)
def test_any_other_change_counts_as_one_of_everything(change):
    bits = full()
    bits.refill(1)
    bits[4] = 0
    bits[4] = 1
    before = bits.begin()
    change(bits)
    assert not bits.is_as_told(before, [])
    assert not bits.is_as_told(before, [(0, len(bits), True)])
    assert not bits.all() or set(bits) == {1}
    assert bits.begin() == bits
    bits.refill(1)
    assert bits.begin().all()


def test_a_wrong_bit_far_away_is_found_in_a_large_guest():
    """The record of 1 GiB knows where it was written, and the checks see a bit that nobody said."""
    testbed = build_testbed(Header(memory=1024))
    assert isinstance(testbed.host.private_map(), MarkedBits)
    ops = (
        Op(OpKind.HYPERCALL, (12, 0x5000, 1, 0, 0)),
        Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), page=9),
    )
    assert testbed.run(ops).is_ok
    answer = testbed.recorder._answer

    def harmful(call):
        testbed.host.private_map()[200_000:200_001] = 0
        return answer(call)

    testbed.recorder._answer = harmful
    found = testbed.run(ops).violations
    assert [violation.check for violation in found] == ["record"]
    testbed.host.restore = lambda frames: None
    assert testbed.run(ops[:1]).violations[0].check == "record"
    testbed.close()
