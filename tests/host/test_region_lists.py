# SPDX-License-Identifier: GPL-2.0-or-later
"""Every short sequence of list operations as posted, counted and compared with plain sets."""

import random
from itertools import pairwise, product

import pytest
from bitarray import bitarray
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.host.kvm.region_list import (
    add_region,
    cut_regions,
    merge_region,
    remove_region,
    take_bits,
)
from guestemu.host.userspace.qemu_list import add_qemu_region, remove_qemu_region

KVM_V10 = (add_region, remove_region)
QEMU_V4 = (add_qemu_region, remove_qemu_region)


def operations(universe):
    ranges = [(a, b) for a in range(universe) for b in range(a + 1, universe + 1)]
    return [(is_remove, a, b) for is_remove in (0, 1) for a, b in ranges]


def run(functions, sequence):
    regions, wanted = [], set()
    for is_remove, start, end in sequence:
        functions[is_remove](regions, start, end)
        pages = range(start, end)
        wanted = wanted.difference(pages) if is_remove else wanted.union(pages)
    return regions, wanted


def covered(regions, universe, inclusive=0):
    return {page for page in range(universe) for a, b in regions if a <= page < b + inclusive}


def failures(functions, universe, length, inclusive=0):
    return [
        sequence
        for sequence in product(operations(universe), repeat=length)
        for regions, wanted in [run(functions, sequence)]
        if covered(regions, universe, inclusive) != wanted
    ]


def test_v10_175_of_900_two_operation_sequences_fail():
    wrong = failures(KVM_V10, 5, 2)
    assert len(operations(5)) ** 2 == 900
    assert len(wrong) == 175
    assert sum(1 for first, second in wrong if not first[0] and not second[0]) == 35
    assert sum(1 for first, second in wrong if not first[0] and second[0]) == 140
    assert failures(KVM_V10, 5, 1) == []


def test_v10_smallest_failures_need_two_pages():
    wrong = failures(KVM_V10, 2, 2)
    assert set(wrong) == {
        ((0, 0, 1), (1, 0, 2)),
        ((0, 0, 2), (0, 0, 1)),
        ((0, 0, 2), (1, 0, 1)),
        ((0, 0, 2), (1, 1, 2)),
        ((0, 1, 2), (1, 0, 2)),
    }


@pytest.mark.parametrize(
    ("sequence", "regions"),
    [
        (((0, 0, 1), (1, 0, 2)), [(0, 1)]),
        (((0, 0, 2), (0, 0, 1)), [(0, 1)]),
        (((0, 0, 2), (1, 0, 1)), [(2, 2)]),
    ],
)
def test_v10_witnesses(sequence, regions):
    assert run(KVM_V10, sequence)[0] == regions


def test_v10_inclusive_ends_are_no_cure():
    assert len(failures(KVM_V10, 5, 1, inclusive=1)) == 10


@pytest.mark.parametrize(
    ("sequence", "results"),
    [
        ([(0, 0, 4), (1, 1, 2)], [1, 1]),
        ([(0, 0, 4), (1, 0, 4)], [1, -1]),
        ([(0, 0, 2), (0, 1, 4)], [1, 0]),
    ],
)
def test_v10_results_are_changes_of_the_count(sequence, results):
    regions = []
    assert [KVM_V10[kind](regions, a, b) for kind, a, b in sequence] == results


def test_qemu_322_of_27000_three_operation_sequences_fail():
    assert failures(QEMU_V4, 5, 1) == failures(QEMU_V4, 5, 2) == []
    wrong = failures(QEMU_V4, 5, 3)
    assert len(wrong) == 322
    assert {tuple(kind for kind, _, _ in sequence) for sequence in wrong} == {(0, 0, 1)}
    for sequence in wrong:
        regions, wanted = run(QEMU_V4, sequence)
        assert covered(regions, 5) > wanted, "a page stays shared, none is lost"


@pytest.mark.parametrize(("universe", "count"), [(2, 2), (3, 19), (4, 93)])
def test_qemu_smaller_universes(universe, count):
    assert len(failures(QEMU_V4, universe, 3)) == count


@pytest.mark.parametrize(
    ("sequence", "regions"),
    [
        (((0, 1, 2), (0, 0, 2), (1, 0, 2)), [(1, 2)]),
        (((0, 1, 2), (0, 0, 3), (1, 1, 2)), [(0, 1), (2, 3), (1, 2)]),
        (((0, 1, 2), (0, 0, 3), (1, 0, 3)), [(1, 2)]),
    ],
)
def test_qemu_witnesses(sequence, regions):
    assert run(QEMU_V4, sequence)[0] == regions


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(operations(8)), max_size=10))
def test_repaired_list_is_a_set(sequence):
    regions, wanted = run((merge_region, cut_regions), sequence)
    assert covered(regions, 8) == wanted
    assert regions == sorted(regions)
    gaps = pairwise(regions)
    assert all(before[1] < after[0] for before, after in gaps), "disjoint and not touching"


def test_bits_are_taken_as_page_by_page():
    rng = random.Random(5)
    runs: list[tuple[int, int]] = []
    single: list[tuple[int, int]] = []
    for _ in range(300):
        first, pages = rng.randrange(40), rng.randrange(30)
        bits = bitarray([rng.random() < 0.7 for _ in range(pages + 3)], "little")
        take_bits(runs, bits, first, pages)
        for page in range(pages):
            change = cut_regions if bits[page] else merge_region
            change(single, first + page, first + page + 1)
        assert runs == single
    assert len(runs) > 1
