# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache

import pytest
from bare_machine import BUDGET, CODE, DATA, FRAMES, HLT, PRIVATE, Bare, store
from bitarray import bitarray
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, Gpa, Gva
from guestemu.abi.x86 import PTE_PRESENT, PTE_PSE, PTE_RW
from guestemu.checks.base import OpView
from guestemu.events.memory import LeafChange
from guestemu.machine.leafmap import LeafMap, Window
from guestemu.machine.memory import GuestRam
from guestemu.program.ops import REGIONS, Op, OpKind, Region
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed

ADDRESS = 0x000F_FFFF_FFFF_F000
GENERATIONS = ["5.10", "2020", "5.17", "6.1", "6.12"]


def leaves(ram: GuestRam, cbit: int, table: int, level: int, va: int) -> Iterator[tuple[int, ...]]:
    """(va, pages, entry) of every present leaf under a table."""
    entries = struct.unpack("<512Q", ram.read(Gpa(table), PAGE_SIZE))
    for index, entry in enumerate(entries):
        here = va | index << 12 + 9 * (level - 1)
        if not entry & PTE_PRESENT:
            continue
        if level == 1 or (level < 4 and entry & PTE_PSE):
            yield here, 1 << 9 * (level - 1), entry
        else:
            yield from leaves(ram, cbit, entry & ADDRESS & ~cbit, level - 1, here)


def full_walk(testbed: Testbed, cr3: int) -> tuple[bitarray, bitarray]:
    """C-bits of the direct map and of the alias window, where something is mapped as expected."""
    guest = testbed.guest
    cbit = guest.machine.pte_cbit
    private = guest.leaf_map.private.copy()
    alias = guest.leaf_map.alias.copy()
    low = 2**48 - 1
    for va, pages, entry in leaves(guest.machine.ram, cbit, cr3 & ADDRESS & ~cbit, 4, 0):
        for window, bits in ((guest.direct_map, private), (guest.regions[Region.V].gva, alias)):
            page = (va - (window & low)) >> 12
            if 0 <= page < len(bits):
                bits[page : min(page + pages, len(bits))] = bool(entry & cbit)
    return private, alias


@cache
def bed_of(generation: str, cbit: int = 39, memory: int = 64) -> tuple[Testbed, int]:
    bed = build_testbed(Header(guest=f"snippet:{generation}", cbit=cbit, memory=memory))
    bed.guest.load(bed.guest.gva(Region.D, 0))
    return bed, bed.guest.machine.current.read_register("cr3")


@st.composite
def ops(draw: st.DrawFn, regions: tuple[Region, ...] = (Region.D, Region.L, Region.V)) -> Op:
    region = draw(st.sampled_from(regions))
    page = draw(st.integers(0, REGIONS[region].pages - 1))
    kind = draw(
        st.sampled_from(
            [
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.SET_MEMORY_DECRYPTED,
                OpKind.SET_MEMORY_ENCRYPTED,
                OpKind.EARLY_SET_MEMORY_DECRYPTED,
                OpKind.EARLY_SET_MEMORY_ENCRYPTED,
                OpKind.TOUCH_CBIT,
                OpKind.UNMAP,
                OpKind.CLEAR_PRESENT,
                OpKind.FAIL_SPLIT,
                OpKind.WRITE,
                OpKind.DMA_ALLOC,
                OpKind.DMA_FREE,
                OpKind.INIT_PLATFORM,
            ]
        )
    )
    pages = draw(st.one_of(st.integers(1, 4), st.sampled_from([511, 512, 513, 600, 1024])))
    offset = draw(st.sampled_from([0, 0, 0, 8, 0xFFF]))
    arguments: tuple[int, ...] = ()
    match kind:
        case OpKind.SET_MEMORY_DECRYPTED | OpKind.SET_MEMORY_ENCRYPTED:
            arguments = (pages, offset)
        case OpKind.EARLY_SET_MEMORY_DECRYPTED | OpKind.EARLY_SET_MEMORY_ENCRYPTED:
            arguments = (pages * PAGE_SIZE - draw(st.sampled_from([0, 1, 100])), offset)
        case OpKind.TOUCH_CBIT:
            arguments = (draw(st.integers(0, 1)),)
        case OpKind.FAIL_SPLIT:
            arguments = (draw(st.integers(0, 2)),)
        case OpKind.WRITE:
            arguments = (0x5A, offset, draw(st.sampled_from([1, 64, 5000])))
        case OpKind.DMA_ALLOC:
            arguments = (draw(st.integers(0, 15)), pages * 1000, draw(st.integers(0, 1)))
        case OpKind.DMA_FREE:
            arguments = (draw(st.integers(0, 15)),)
        case OpKind.INIT_PLATFORM:
            arguments = (0,)
        case _:
            pass
    return Op(kind, arguments, region, page)


def assert_maps_agree(bed: Testbed, cr3: int, program: list[Op]) -> None:
    bed.run(program)
    private, alias = full_walk(bed, cr3)
    leaf_map = bed.guest.leaf_map
    assert leaf_map.private == private
    assert leaf_map.alias == alias
    bed.reset()
    private, alias = full_walk(bed, cr3)
    assert (leaf_map.private, leaf_map.alias) == (private, alias), "after the reset"
    assert not leaf_map.holes
    assert not leaf_map.moved


@settings(max_examples=50, deadline=None, database=None)
@given(st.sampled_from(GENERATIONS), st.lists(ops(), max_size=6))
def test_the_map_equals_a_full_walk(generation: str, program: list[Op]) -> None:
    assert_maps_agree(*bed_of(generation), program)


@settings(max_examples=15, deadline=None, database=None)
@given(st.lists(ops((Region.D, Region.V)), max_size=5))
def test_the_map_equals_a_full_walk_with_cbit_51(program: list[Op]) -> None:
    assert_maps_agree(*bed_of("6.1", 51), program)


@pytest.mark.parametrize("generation", ["5.17", "6.12"])
def test_the_map_follows_the_split_of_a_1_gib_leaf(generation: str) -> None:
    bed, cr3 = bed_of(generation, memory=4096)
    program = [
        Op(OpKind.SET_MEMORY_DECRYPTED, (3, 0), Region.G, 511),
        Op(OpKind.SET_MEMORY_DECRYPTED, (1 << 18, 0), Region.G, 1 << 18),
        Op(OpKind.SET_MEMORY_ENCRYPTED, (512, 0), Region.G, (1 << 18) + 1024),
    ]
    outcome = bed.run(program)
    assert [result.outcome.value for result in outcome.results] == [0, 0, 0]
    first = bed.guest.gpa(Region.G, 0) >> 12
    private, _ = full_walk(bed, cr3)
    assert bed.guest.leaf_map.private == private
    assert private.find(0, first) == first + 511
    assert private.count(0, first) == 3 + (1 << 18) - 512
    assert_maps_agree(bed, cr3, program)


def assert_what_was_before(bed: Testbed, program: list[Op]) -> None:
    """Each operation's view has the map that the last one left, and knows what became of it."""
    bed.reset()
    kept = [bed.guest.leaf_map.private.copy()]

    def observe(view: OpView) -> None:
        now = view.guest.leaf_map.private
        assert view.private_before == kept[-1]
        expected = kept[-1].copy()
        if view.frames is not None:
            first, end = view.frames[0], view.frames[0] + view.frames[1]
            expected[first:end] = view.wants_private
            became = view.guest.leaf_map.became(first, end, view.wants_private)
            assert became == (end > first and now == expected)
        kept.append(now.copy())

    bed.observe = observe
    try:
        bed.run(program)
    finally:
        bed.observe = None


@settings(max_examples=20, deadline=None, database=None)
@given(st.lists(ops((Region.D, Region.L)), max_size=6))
def test_a_view_has_the_map_from_before(program: list[Op]) -> None:
    assert_what_was_before(bed_of("6.1")[0], program)


def test_the_map_from_before_is_right_after_more_changes_than_are_noted() -> None:
    again = [
        Op(OpKind.SET_MEMORY_DECRYPTED, (1024, 0), Region.D, 0),
        Op(OpKind.SET_MEMORY_ENCRYPTED, (1024, 0), Region.D, 0),
    ]
    bed = bed_of("6.1")[0]
    assert_what_was_before(bed, again * 4)
    bed.reset()
    assert bed.guest.leaf_map.private.count(0) == PMD_SIZE // PAGE_SIZE, "only .bss..decrypted"


# On bare tables -----------------------------------------------------------------------------------


@pytest.fixture
def bare() -> Bare:
    return Bare()


def leaf_map_of(bare: Bare) -> LeafMap:
    window = Window(Gva(PRIVATE), 0, FRAMES)
    leaf_map = LeafMap(bare.machine.ram, bare.tables.root, bare.machine.bit, window, None)
    bare.machine.checkpoint()
    return leaf_map


def store_entries(bare: Bare, entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    code = b"".join(store(PRIVATE + gpa, value) for gpa, value in entries)
    bare.run(code + HLT, at=0x20000, budget=BUDGET)
    return bare.machine.ram.table_writes()


def test_a_flip_names_the_leaf_and_how_much_changed(bare: Bare) -> None:
    leaf_map = leaf_map_of(bare)
    cbit = bare.machine.pte_cbit
    small = bare.tables.walk(Gva(PRIVATE + DATA + PAGE_SIZE))
    large = bare.tables.walk(Gva(PRIVATE + DATA + PMD_SIZE))
    writes = store_entries(
        bare, [(small.entry_gpa, small.entry & ~cbit), (large.entry_gpa, large.entry & ~cbit)]
    )
    assert leaf_map.update(writes) == [
        LeafChange(Gva(PRIVATE + DATA + PAGE_SIZE), (DATA >> 12) + 1, 1, False, 1, False),
        LeafChange(Gva(PRIVATE + DATA + PMD_SIZE), (DATA + PMD_SIZE) >> 12, 512, False, 512, False),
    ]
    assert leaf_map.private.count(0) == 513
    assert leaf_map.update(writes) == [], "the same stores again change nothing"


def test_a_hole_and_a_foreign_frame_are_told_apart(bare: Bare) -> None:
    leaf_map = leaf_map_of(bare)
    gva = PRIVATE + DATA
    leaf = bare.tables.walk(Gva(gva))
    other = bare.tables.walk(Gva(gva + 5 * PAGE_SIZE)).entry
    assert leaf_map.update(store_entries(bare, [(leaf.entry_gpa, 0)])) == []
    assert leaf_map.holes == {gva}
    assert leaf_map.private[DATA >> 12], "a hole keeps its last value"
    leaf_map.update(store_entries(bare, [(leaf.entry_gpa, other)]))
    assert (leaf_map.holes, leaf_map.moved) == (set(), {gva})
    leaf_map.update(store_entries(bare, [(leaf.entry_gpa, leaf.entry)]))
    assert (leaf_map.holes, leaf_map.moved) == (set(), set())


def test_a_table_is_believed_from_the_moment_it_is_linked(bare: Bare) -> None:
    """Filled before it is linked, as a split does, with one entry that differs."""
    leaf_map = leaf_map_of(bare)
    cbit = bare.machine.pte_cbit
    gva = PRIVATE + DATA + PMD_SIZE
    large = bare.tables.walk(Gva(gva))
    table = 0x1C0_000
    first = (large.entry & ~PTE_PSE) + 0
    for index in range(512):
        value = first + index * PAGE_SIZE
        if index == 7:
            value &= ~cbit
        bare.machine.ram.write_u64(Gpa(table + 8 * index), value)
    assert leaf_map.private.all()
    link = table | PTE_PRESENT | PTE_RW | 0x60 | cbit
    flips = leaf_map.update(store_entries(bare, [(large.entry_gpa, link)]))
    assert [flip.gfn for flip in flips] == [((DATA + PMD_SIZE) >> 12) + 7]
    # From now on stores into the new table count.
    flips = leaf_map.update(store_entries(bare, [(table + 8 * 9, (first + 9 * PAGE_SIZE) & ~cbit)]))
    assert [flip.gfn for flip in flips] == [((DATA + PMD_SIZE) >> 12) + 9]


def test_a_rollback_unlinks_what_the_run_linked(bare: Bare) -> None:
    """The same page may be linked at another place in the next run."""
    leaf_map = leaf_map_of(bare)
    cbit = bare.machine.pte_cbit
    table = 0x1C0_000
    for position, at in enumerate((DATA + PMD_SIZE, DATA + 2 * PMD_SIZE)):
        large = bare.tables.walk(Gva(PRIVATE + at))
        for index in range(512):
            value = (large.entry & ~PTE_PSE) + index * PAGE_SIZE
            bare.machine.ram.write_u64(Gpa(table + 8 * index), value)
        link = table | PTE_PRESENT | PTE_RW | 0x60 | cbit
        shared = (large.entry & ~PTE_PSE) & ~cbit
        leaf_map.update(store_entries(bare, [(large.entry_gpa, link)]))
        flips = leaf_map.update(store_entries(bare, [(table, shared)]))
        assert [flip.gfn for flip in flips] == [at >> 12], position
        bare.machine.rollback()
        leaf_map.rollback()
        assert leaf_map.private.all()


def test_code_is_where_the_tests_think(bare: Bare) -> None:
    assert bare.tables.translate(Gva(CODE)) == (Gpa(CODE), True)
