# SPDX-License-Identifier: GPL-2.0-or-later
"""The posted routines that store the page status, figure by figure (D4 to D8, D10, D11)."""

from __future__ import annotations

import random

import pytest
from bitarray import bitarray

from guestemu.host.qemu.patch_sets import PATCH_SETS, QemuDefect, defects_left
from guestemu.host.qemu.status_sync import (
    counted_pages,
    is_encrypted,
    store_bitmap,
    whole_words,
)

IN_2019 = PATCH_SETS["2019-v2"].defects
IN_2020 = PATCH_SETS["2020-v1"].defects
NONE: frozenset[QemuDefect] = frozenset()


def ones(size: int) -> bitarray:
    bits = bitarray(size, endian="little")
    bits.setall(True)
    return bits


def zeros(size: int) -> bitarray:
    return bitarray(size, endian="little")


def random_bits(size: int, seed: int) -> bitarray:
    rng = random.Random(seed)
    return bitarray([rng.random() < 0.5 for _ in range(size)], endian="little")


def wrong(bitmap: bitarray, start: int, defects: frozenset[QemuDefect]) -> int:
    """Pages of an all-encrypted map that are wrong after storing `bitmap` at `start`."""
    pages = len(bitmap)
    status, right = ones(512), ones(512)
    store_bitmap(status, bitmap, start, pages, defects)
    right[start : start + pages] = bitmap
    return (status ^ right).count()


def test_d11_aligned_all_shared_pages_stay_encrypted() -> None:
    assert wrong(zeros(256), 0, IN_2020) == 256
    assert wrong(zeros(256), 0, IN_2019) == 256
    assert wrong(zeros(256), 0, IN_2020 - {QemuDefect.ZERO_WORD}) == 0


def test_d11_unaligned_all_shared() -> None:
    assert wrong(zeros(256), 3, IN_2020) == 198


def test_d11_unaligned_random_half() -> None:
    figures = [wrong(random_bits(256, seed), 3, IN_2020) for seed in range(50)]
    assert 127 < sum(figures) / len(figures) < 133


def test_d11_the_mask_alone_does_not_help() -> None:
    assert wrong(zeros(256), 3, IN_2020 - {QemuDefect.MASK}) == 198


@pytest.mark.parametrize("left", [QemuDefect.MASK, QemuDefect.BYTE_PAGE, QemuDefect.VALUE_SHIFT])
def test_each_of_the_three_of_2020_is_wrong_alone(left: QemuDefect) -> None:
    assert wrong(random_bits(250, 1), 3, frozenset({left})) > 0


@pytest.mark.parametrize("seed", range(20))
def test_repaired_is_a_copy(seed: int) -> None:
    rng = random.Random(seed)
    bitmap = random_bits(rng.randrange(1, 300), seed)
    for version in PATCH_SETS.values():
        names = {defect.value for defect in version.defects}
        assert wrong(bitmap, rng.randrange(200), defects_left(version, names)) == 0


def test_d4_only_whole_words_of_shared_pages_are_lost() -> None:
    bitmap = zeros(128)
    bitmap[70] = True
    assert wrong(bitmap, 64, IN_2019 - {QemuDefect.TAIL_BITS}) == 64
    assert wrong(bitmap, 64, frozenset({QemuDefect.ZERO_WORD})) == 64


def test_d4_bits_behind_the_range_are_overwritten() -> None:
    bitmap = zeros(64)
    bitmap[0] = True
    status = ones(128)
    store_bitmap(status, bitmap, 0, 10, frozenset({QemuDefect.TAIL_BITS}))
    assert status.count(0) == 63
    status = ones(128)
    store_bitmap(status, bitmap, 0, 10, NONE)
    assert status.count(0) == 9


def test_d5_a_page_per_word() -> None:
    """Words 0 to 3 all go to the first word of the map, the last one stays."""
    bitmap = ones(256)
    bitmap[192:256] = random_bits(64, 2)
    status = zeros(512)
    store_bitmap(status, bitmap, 3, 256, IN_2019)
    assert status[:64] == bitmap[192:256]
    assert not status[64:].any()


def test_d5_the_stride_crosses_into_the_next_word() -> None:
    status = zeros(512)
    bitmap = ones(192)
    bitmap[0:64] = False
    store_bitmap(status, bitmap, 63, 192, IN_2019)
    assert status[:64].count() == 0
    assert status[64:128].count() == 64


def test_d6_one_private_page_makes_64() -> None:
    status = zeros(128)
    status[5] = True
    assert [is_encrypted(status, page, IN_2019) for page in (0, 5, 63, 64)] == [
        True,
        True,
        True,
        False,
    ]
    assert [is_encrypted(status, page, IN_2020) for page in (0, 5)] == [False, True]


def test_d8_8_tib_of_pages_are_negative() -> None:
    assert counted_pages((1 << 31) - 1, IN_2019) == (1 << 31) - 1
    assert counted_pages(1 << 31, IN_2019) == -(1 << 31)
    assert counted_pages(1 << 31, IN_2020) == 1 << 31
    status = ones(64)
    store_bitmap(status, zeros(64), 0, 1 << 31, IN_2019)
    assert status.all()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 200])
def test_d6_all_pages_at_once_are_as_each_by_itself(size: int) -> None:
    for seed in range(4):
        bits = random_bits(size, seed) & random_bits(size, seed + 9)
        if size > 64:
            bits[64:128] = False
        found = [is_encrypted(bits, page, IN_2019) for page in range(size)]
        assert whole_words(bits).tolist() == found
