# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutator in machine code does what the one in Python does."""

from __future__ import annotations

import ctypes
import random

import pytest

from guestemu.campaign.mixed_mutator import MixedMutator
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.native import load_mutator
from guestemu.campaign.shares import LEAST, MOST, WORDS, Shares
from guestemu.campaign.targets import find_target
from guestemu.program.binary import RECORD_SIZE
from guestemu.program.program import Header

MAX_SIZE = 6 * RECORD_SIZE
VMCALL = 0x10


def llvm_mutate(address: int, size: int, max_size: int) -> int:
    """Stands for LLVMFuzzerMutate: changes every byte and sometimes the size."""
    data = ctypes.string_at(address, size)
    changed = bytes(byte ^ 0x5A for byte in data)[: max_size - data[0] % 50]
    ctypes.memmove(address, changed, len(changed))
    return len(changed)


LlvmMutate = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


@pytest.fixture(scope="module")
def pair():
    native = load_mutator()
    if native is None:
        pytest.skip("no machine code on this host")
    target = find_target("conversion")
    python = MixedMutator(Mutator(Header(), target.kinds), MAX_SIZE)
    callback = LlvmMutate(llvm_mutate)
    python.use(callback)
    native.connect(ctypes.cast(callback, ctypes.c_void_p).value, python)
    yield native, python
    del callback


def native_mutate(native, data: bytes, max_size: int, seed: int) -> bytes:
    buffer = ctypes.create_string_buffer(data, MAX_SIZE)
    size = native.mutate(buffer, len(data), max_size, seed)
    return buffer.raw[:size]


def native_cross(native, first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
    out = ctypes.create_string_buffer(MAX_SIZE)
    size = native.cross(first, len(first), second, len(second), out, max_size, seed)
    return out.raw[:size]


def samples(count: int):
    rng = random.Random(1)
    for _ in range(count):
        sizes = [rng.choice((0, 1, 47, 48, 49, 96, 97, 200, MAX_SIZE)) for _ in range(2)]
        room = max(rng.choice((10, 48, 100, 192, MAX_SIZE)), 1)
        seed = rng.getrandbits(32)
        yield *(rng.randbytes(size) for size in sizes), room, seed


def test_mutations_are_those_of_python(pair):
    native, python = pair
    seen = set()
    for count, (data, _, room, seed) in enumerate(samples(9000)):
        data = data[:room]
        seed = seed & ~63 | count & 16 if count % 3 == 0 else seed  # whole records, edges
        expected = python.mutate(data, room, seed)
        assert native_mutate(native, data, room, seed) == expected, (data, room, seed)
        assert len(expected) <= room
        seen.add(expected)
    assert len(seen) > 6000


def test_crossovers_are_those_of_python(pair):
    native, python = pair
    for first, second, room, seed in samples(3000):
        expected = python.cross(first, second, room, seed)
        assert native_cross(native, first, second, room, seed) == expected
        assert len(expected) <= room


def test_pokes_change_little_and_reach_every_record(pair):
    native, _ = pair
    data = bytes(MAX_SIZE)
    changed_places = set()
    for seed in range(4, 80000, 32):  # pokes: multiples of 4, but not of 32
        after = native_mutate(native, data, MAX_SIZE, seed)
        assert len(after) in (MAX_SIZE, MAX_SIZE - RECORD_SIZE)
        places = {place for place, byte in enumerate(after) if byte}
        assert len(places) <= 2
        changed_places |= places
    assert {place // RECORD_SIZE for place in changed_places} == set(range(6))
    assert {place % RECORD_SIZE for place in changed_places} == {0, 1, 2, 4, 5, 8, 16, 24, 32, 40}


def test_few_mutations_leave_a_vmcall(pair):
    native, _ = pair
    data = bytes([0, VMCALL]) + bytes(RECORD_SIZE - 2)
    left = sum(
        native_mutate(native, data, RECORD_SIZE, seed)[1] & VMCALL != 0
        for seed in range(4, 32000, 32)
    )
    assert 0 < left < 100


def test_new_programs_have_any_length(pair):
    native, _ = pair
    data = bytes(MAX_SIZE)
    made = [native_mutate(native, data, MAX_SIZE, seed) for seed in range(32, 64000, 64)]
    lengths = [len(records) // RECORD_SIZE for records in made]
    assert all(lengths.count(length) > 100 for length in range(1, 7))
    assert len(set(made)) == len(made)


def test_as_many_new_programs_as_pay_on_both_sides(pair):
    native, python = pair
    python.shares, shares = Shares(), native.share()
    try:
        for count, (first, second, room, seed) in enumerate(samples(12000)):
            data = first[:room]
            if count % 3:
                assert native_mutate(native, data, room, seed) == python.mutate(data, room, seed)
            else:
                crossed = python.cross(first, second, room, seed)
                assert native_cross(native, first, second, room, seed) == crossed
            if count % 7 == 0:
                shares.gain()
                python.shares.gain()
            assert shares.fresh_below == python.shares.fresh_below
        assert LEAST <= shares.fresh_below <= MOST
    finally:
        python.shares = None
        native._share[:] = [0] * WORDS
