# SPDX-License-Identifier: GPL-2.0-or-later
"""Maps as the places where they change are the bitmaps that they stand for."""

from __future__ import annotations

import ctypes
import random

import pytest
from bitarray import bitarray
from bitarray.util import count_xor

from guestemu.abi.errors import EngineError
from guestemu.campaign.fastpath.records import RUNS, FastRecord, RunsRecord
from guestemu.native import build

LENGTH = 320


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.PyDLL:
    if build.find_compiler() is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("runs") / "runs.so"
    build.compile_library(build.FASTPATH, made, ("-fvisibility=default",))
    library = ctypes.PyDLL(str(made))
    library.fast_bit.restype = ctypes.c_bool
    library.fast_same.restype = ctypes.c_bool
    library.fast_differences.restype = ctypes.c_uint64
    return library


def set_bits(library: ctypes.PyDLL, record: FastRecord, first: int, end: int, value: bool) -> None:
    places = (ctypes.c_uint64(first), ctypes.c_uint64(end), ctypes.c_bool(value))
    library.fast_set_bits(ctypes.byref(record), ctypes.byref(record.host), *places)


def random_range(rng: random.Random) -> tuple[int, int]:
    first = rng.choice((0, rng.randrange(LENGTH), LENGTH - 1))
    return first, rng.choice((first, first + 1, rng.randint(first, LENGTH), LENGTH))


def test_ranges_copies_and_differences(library):
    rng = random.Random(3)
    record = FastRecord()
    map_ = bitarray(LENGTH, endian="little")
    map_.setall(False)
    seen = set()
    for _ in range(3000):
        first, end = random_range(rng)
        value = rng.random() < 0.5
        before = map_.copy()
        library.fast_copy(ctypes.byref(record.host_before), ctypes.byref(record.host))
        set_bits(library, record, first, end, value)
        map_[first:end] = value
        assert record.host.bits(LENGTH) == map_
        assert record.host_before.bits(LENGTH) == before
        pair = ctypes.byref(record.host), ctypes.byref(record.host_before)
        assert library.fast_same(*pair) == (map_ == before)
        assert library.fast_differences(*pair) == count_xor(map_, before)
        place = rng.randrange(LENGTH)
        assert library.fast_bit(pair[0], ctypes.c_uint64(place)) == bool(map_[place])
        other = RunsRecord()
        other.assign(map_)
        assert library.fast_same(ctypes.byref(other), pair[0])
        seen.add(map_ == before)
    assert seen == {False, True}
    assert not record.is_odd


def test_more_changes_than_fit_are_left_to_python(library):
    record = FastRecord()
    for place in range(0, RUNS, 2):
        set_bits(library, record, place, place + 1, True)
    assert record.host.count == RUNS
    set_bits(library, record, 1, 2, True)
    assert not record.is_odd
    set_bits(library, record, 1, 2, False)
    set_bits(library, record, RUNS + 5, RUNS + 6, True)
    assert record.is_odd
    assert record.host.count == RUNS
    with pytest.raises(EngineError, match="1026 changes"):
        RunsRecord().assign(bitarray("10" * (RUNS // 2 + 1), endian="little"))


def test_a_bitmap_of_a_host_is_seen_whatever_it_becomes(library):
    rng = random.Random(4)
    size = 64 * 1100  # longer than a block that is compared as a whole
    now = bitarray(size, endian="little")
    now.setall(True)
    seen = ctypes.create_string_buffer(size // 8)
    record = FastRecord(
        host_map=now.buffer_info()[0], host_seen=ctypes.addressof(seen), host_words=size // 64
    )
    for number in range(400):
        library.fast_see_host(ctypes.byref(record))
        assert record.host.bits(size) == now, number
        assert seen.raw[: size // 8] == now.tobytes()
        first = rng.randrange(size)
        now[first : first + rng.choice((1, 3, 64, 700, size))] = rng.random() < 0.5
        if rng.random() < 0.1:
            now.setall(rng.random() < 0.5)


def test_a_bitmap_with_more_changes_than_fit_is_seen_afresh(library):
    now = bitarray("10" * 2048, endian="little")
    seen = ctypes.create_string_buffer(len(now) // 8)
    record = FastRecord(
        host_map=now.buffer_info()[0], host_seen=ctypes.addressof(seen), host_words=len(now) // 64
    )
    library.fast_see_host(ctypes.byref(record))
    assert record.is_odd
    record.is_odd = False
    now[:] = True
    now[100:200] = False
    library.fast_see_host(ctypes.byref(record))
    assert not record.is_odd
    assert record.host.bits(len(now)) == now
