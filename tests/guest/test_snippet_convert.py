# SPDX-License-Identifier: GPL-2.0-or-later
"""Runtime conversions on every generation; real 6.1 and 6.12 kernels gave the values."""

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
    VMAP,
    C,
    D,
    G,
    L,
    Machine,
)

ALL = ("5.10", "2020", "5.17", "6.1", "6.12")
NOTIFIERS = ALL[1:]
ENOMEM = -12


def encrypted_argument(generation: str) -> int:
    return 1 if generation == "2020" else 0x10


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_one_page_both_ways(generation: str) -> None:
    m = Machine(generation)
    va = BASE + D + 5 * PAGE
    assert m.decrypt(va, 1) == 0
    assert m.take() == [(12, D + 5 * PAGE, 1, 0)]
    assert m.leaf(va) == (D + 5 * PAGE | 0x63, 1)
    assert m.is_private(va - PAGE)
    assert m.is_private(va + PAGE)
    assert m.encrypt(va, 1) == 0
    assert m.take() == [(12, D + 5 * PAGE, 1, encrypted_argument(generation))]
    assert m.leaf(va) == (D + 5 * PAGE | 0x63 | C, 1)
    assert not m.warnings


@pytest.mark.parametrize("generation", ALL)
def test_a_page_of_a_large_leaf_splits_it(generation: str) -> None:
    m = Machine(generation)
    m.info.write("pt_pool", POOL)
    assert m.decrypt(BASE + L + 7 * PAGE, 1) == 0
    for page in range(512):
        entry, level = m.leaf(BASE + L + page * PAGE)
        assert level == 1
        assert entry == L + page * PAGE | 0x63 | (0 if page == 7 else C)
    assert m.info.read("pt_pool_left") == POOL_PAGES - 1
    table = m.read_u64(m._entry_gpa(BASE + L, 2))
    assert table == POOL | 0x63 | C
    if generation in NOTIFIERS:
        assert m.take() == [(12, L + 7 * PAGE, 1, 0)]


def test_split_leaves_are_not_merged_again() -> None:
    m = Machine()
    m.decrypt(BASE + L, 1)
    m.take()
    assert m.encrypt(BASE + L, 512) == 0
    assert m.leaf(BASE + L)[1] == 1
    assert [call[1:3] for call in m.take()] == [(L + n * PAGE, 1) for n in range(512)]


def test_a_1g_leaf_is_split_to_2m_and_then_to_4k() -> None:
    m = Machine()
    assert m.decrypt(BASE + G + 3 * PMD + PAGE, 1) == 0
    assert m.leaf(BASE + G)[1] == 2
    assert m.leaf(BASE + G + PUD - PMD) == (G + PUD - PMD | 0x63 | PSE | C, 2)
    assert m.leaf(BASE + G + 3 * PMD + PAGE) == (G + 3 * PMD + PAGE | 0x63, 1)
    assert m.leaf(BASE + G + PUD) == (G + PUD | 0x63 | PSE | C, 3)
    assert m.take() == [(12, G + 3 * PMD + PAGE, 1, 0)]
    assert m.info.read("pt_pool_left") == POOL_PAGES - 2


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_the_second_conversion_is_notified_too(generation: str) -> None:
    m = Machine(generation, wants_trace=True)
    m.decrypt(BASE + D, 1)
    m.trace.clear()
    assert m.decrypt(BASE + D, 1) == 0
    assert m.trace == ["tlb flush", "tlb flush", "hypercall"]
    assert m.take() == [(12, D, 1, 0)] * 2


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_whole_leaves_keep_their_size(generation: str) -> None:
    m = Machine(generation)
    assert m.decrypt(BASE + L, 512) == 0
    assert m.leaf(BASE + L) == (L | 0x63 | PSE, 2)
    assert m.take() == [(12, L, 512, 0)]
    assert m.decrypt(BASE + L + PMD, 513) == 0
    assert m.take() == [(12, L + PMD, 512, 0), (12, L + 2 * PMD, 1, 0)]
    assert m.leaf(BASE + L + PMD)[1] == 2
    assert m.leaf(BASE + L + 2 * PMD)[1] == 1
    assert m.is_private(BASE + L + 2 * PMD + PAGE)
    assert m.decrypt(BASE + G, PUD // PAGE) == 0
    assert m.leaf(BASE + G) == (G | 0x63 | PSE, 3)
    assert m.take() == [(12, G, 262144, 0)]


def test_a_range_over_an_unaligned_start_and_a_whole_leaf() -> None:
    m = Machine()
    assert m.decrypt(BASE + L + PMD - 2 * PAGE, 2 + 512 + 1) == 0
    assert m.leaf(BASE + L + PMD) == (L + PMD | 0x63 | PSE, 2)
    assert [m.is_private(BASE + L + PMD + n * PAGE) for n in (-3, -2, -1)] == [True, False, False]
    assert [call[1:3] for call in m.take()] == [
        (L + PMD - 2 * PAGE, 1),
        (L + PMD - PAGE, 1),
        (L + PMD, 512),
        (L + 2 * PMD, 1),
    ]


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_a_page_of_a_leaf_with_the_attribute_reports_the_whole_leaf(generation: str) -> None:
    m = Machine(generation)
    m.decrypt(BASE + L, 512)
    m.take()
    assert m.decrypt(BASE + L + 9 * PAGE, 1) == 0
    assert m.leaf(BASE + L)[1] == 2
    assert m.take() == [(12, L, 512, 0)]


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_an_alias_takes_the_direct_map_along(generation: str) -> None:
    m = Machine(generation, wants_trace=True)
    assert m.decrypt(VMAP + 3 * PAGE, 2) == 0
    for page in range(2, 6):
        is_private = page not in {3, 4}
        assert m.is_private(VMAP + page * PAGE) == is_private
        assert m.is_private(BASE + D + page * PAGE) == is_private
    assert m.take() == [(12, D + 3 * PAGE, 1, 0), (12, D + 4 * PAGE, 1, 0)]
    # Before: one INVLPG per page. After: everything, because an alias was changed.
    assert m.trace == [
        *["tlb flush"] * 2,
        *["entry"] * 4,
        "global flush",
        *["hypercall"] * 2,
    ]


@pytest.mark.parametrize("generation", NOTIFIERS)
@pytest.mark.parametrize("answer", [-22, -1000, 77])
def test_the_answer_of_the_host_is_ignored(generation: str, answer: int) -> None:
    m = Machine(generation, answer=answer)
    assert m.decrypt(BASE + D, 2) == 0
    assert not m.is_private(BASE + D)
    assert len(m.take()) == 2


@pytest.mark.parametrize("generation", ALL)
def test_a_misaligned_address_warns_once_and_is_rounded_down(generation: str) -> None:
    m = Machine(generation)
    assert m.decrypt(BASE + D + 0xFFF, 1) == 0
    assert m.warnings == ["misaligned"]
    assert not m.is_private(BASE + D)
    assert m.is_private(BASE + D + PAGE)
    assert m.encrypt(BASE + D + 1, 1) == 0
    assert m.warnings == ["misaligned"]
    assert m.is_private(BASE + D)


@pytest.mark.parametrize("generation", ALL)
def test_no_pages_is_success_without_a_hypercall(generation: str) -> None:
    m = Machine(generation)
    assert m.decrypt(BASE + D, 0) == 0
    assert m.is_private(BASE + D)
    assert m.calls == []


@pytest.mark.parametrize("generation", ALL)
def test_no_memory_encryption_means_no_work(generation: str) -> None:
    m = Machine(generation, wants_trace=True)
    m.info.write("cbit_mask", 0)
    assert m.decrypt(BASE + D, 1) == 0
    assert m.trace == []


def test_an_empty_pool_fails_as_well() -> None:
    m = Machine()
    m.info.write("pt_pool_left", 1)
    assert m.decrypt(BASE + L, 1) == 0
    assert m.decrypt(BASE + L + PMD, 1) == ENOMEM
    assert m.decrypt(BASE + L + PMD, 1) == ENOMEM
    assert m.info.read("pt_pool_left") == 0


@pytest.mark.parametrize("generation", NOTIFIERS)
def test_order_of_steps(generation: str) -> None:
    m = Machine(generation, wants_trace=True)
    m.info.write("coherent", 0)
    assert m.decrypt(BASE + D, 2) == 0
    assert m.trace == [
        *["tlb flush"] * 2,
        *["clflush"] * 128,
        *["entry"] * 2,
        *["tlb flush"] * 2,
        *["hypercall"] * 2,
    ]


@pytest.mark.parametrize(("pages", "flush"), [(33, ["tlb flush"] * 33), (34, ["global flush"])])
def test_more_than_33_pages_flush_everything(pages: int, flush: list[str]) -> None:
    m = Machine(wants_trace=True)
    assert m.decrypt(BASE + D, pages) == 0
    assert m.trace == [*flush, *["entry"] * pages, *flush, *["hypercall"] * pages]


def test_a_split_flushes_globally_before_the_small_entry_changes() -> None:
    m = Machine(wants_trace=True)
    m.decrypt(BASE + L, 1)
    assert m.trace == ["tlb flush", "entry", "global flush", "entry", "tlb flush", "hypercall"]


def test_only_present_pages_are_flushed_from_the_cache() -> None:
    m = Machine(wants_trace=True)
    m.info.write("coherent", 0)
    m.set_entry(BASE + D + PAGE, D + PAGE | 0x62 | C)
    assert m.decrypt(BASE + D, 3) == 0
    assert m.trace.count("clflush") == 2 * 64


def test_a_split_keeps_every_attribute() -> None:
    m = Machine()
    # Global, not executable, PAT: bit 12 of a large entry, bit 7 of a small one.
    m.map(BASE + L, L, 2, 0x163 | 1 << 12 | 1 << 63 | C)
    assert m.decrypt(BASE + L, 1) == 0
    assert m.leaf(BASE + L)[0] == L | 0x163 | 1 << 7 | 1 << 63
    assert m.leaf(BASE + L + PAGE)[0] == L + PAGE | 0x163 | 1 << 7 | 1 << 63 | C


def test_a_split_of_a_leaf_that_is_not_present() -> None:
    m = Machine()
    m.map(BASE + L, L, 2, 0x162 | C)
    m.map(BASE + G, G, 3, 0x162 | C)
    assert m.decrypt(BASE + L, 1) == 0
    assert m.leaf(BASE + L + PAGE) == (L + PAGE | 0x62 | C, 1)
    assert m.decrypt(BASE + G, 512) == 0
    assert m.leaf(BASE + G + PMD) == (G + PMD | 0x62 | C, 2)


def test_one_page_takes_a_few_hundred_instructions() -> None:
    for generation in ALL:
        m = Machine(generation, wants_trace=True)
        m.decrypt(BASE + D, 1)
        assert m.instructions < 350
