# SPDX-License-Identifier: GPL-2.0-or-later
"""The hash of a feature is the same in Python and C, and in every release."""

from __future__ import annotations

import ctypes
import random

import pytest

from guestemu.campaign.features import feature
from guestemu.native import build


def test_the_hash_never_changes() -> None:
    """Corpora are comparable from one release to the next only while it does not."""
    assert feature() == 0x9E37_79B9_7F4A_7C15
    assert feature(0) == 0x7621_2D05_B978_2E79
    assert feature(1, 2, 3) == 0xD933_12CF_13D0_4D06
    assert feature(-1) == feature((1 << 64) - 1)


def test_order_and_number_of_items_count() -> None:
    assert len({feature(1, 2), feature(2, 1), feature(1, 2, 0), feature(0, 1, 2)}) == 4


def test_the_low_bits_are_spread() -> None:
    """Of 4096 counters about 63 % have one of 4096 features, as with a perfect hash."""
    for length in (2, 5, 9):
        tail = (0,) * (length - 2)
        used = {feature(a, b, *tail) & 0xFFF for a in range(64) for b in range(64)}
        assert 2450 < len(used) < 2730


def test_c_has_the_same(tmp_path) -> None:
    if build.find_compiler() is None:
        pytest.skip("no C compiler")
    made = tmp_path / "features.so"
    build.compile_library(build.FASTPATH, made, ("-fvisibility=default",))
    library = ctypes.PyDLL(str(made))
    library.fast_feature.restype = ctypes.c_uint64
    rng = random.Random(2)
    for _ in range(500):
        items = [rng.choice((0, 1, -1, rng.getrandbits(63))) for _ in range(rng.randrange(10))]
        words = (ctypes.c_int64 * len(items))(*items)
        assert library.fast_feature(words, ctypes.c_uint64(len(items))) == feature(*items)
