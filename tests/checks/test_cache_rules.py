# SPDX-License-Identifier: GPL-2.0-or-later
"""Which bytes a page's last writer may rely on (E32), with caches written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.regions import Region
from guestemu.checks.cache import CACHE_LOSS, CacheCheck
from guestemu.machine.cache import CachedRam
from guestemu.program.ops import Op, OpKind

FRAMES = 8
NEW, OTHER = 0x22, 0x33
GUEST, VMM = "the guest", "the VMM"


class Ram(CachedRam):
    """Both views of each frame as they are read through the caches."""

    def __init__(self) -> None:
        self.frames = FRAMES
        self.views = {(gfn, c): bytearray(PAGE_SIZE) for gfn in range(FRAMES) for c in (0, 1)}

    def peek(self, gpa: int, size: int, private: bool) -> bytes:
        return bytes(self.views[gpa >> 12, int(private)][:size])


class World:
    """Page N of D is frame N; page N of V maps frame N + 4 with a C-bit of its own."""

    def __init__(self) -> None:
        self.ram = Ram()
        self.private = bitarray("1" * FRAMES)
        self.alias = bitarray("11")
        self.check = CacheCheck()
        self.index = 0
        leaf_map = SimpleNamespace(private=self.private, alias=self.alias)
        self.guest = SimpleNamespace(
            machine=SimpleNamespace(ram=self.ram),
            leaf_map=leaf_map,
            gpa=lambda region, page: page + 4 * (region is Region.V) << 12,
        )

    def do(self, kind, *arguments, region=Region.D, page=0, value=0, flips=(), ram=None):
        guest = self.guest
        if ram is not None:
            guest = SimpleNamespace(machine=SimpleNamespace(ram=ram))
        view = SimpleNamespace(
            index=self.index,
            op=Op(kind, arguments, region, page),
            guest=guest,
            outcome=SimpleNamespace(value=value),
            flips=[SimpleNamespace(gfn=gfn, pages=pages) for gfn, pages in flips],
        )
        self.index += 1
        return [found.message for found in self.check.after(view)]

    def put(self, gfn: int, place: int, value: int = NEW, size: int = 1) -> None:
        """Both views of a page have these bytes."""
        for c in (0, 1):
            self.ram.views[gfn, c][place : place + size] = bytes([value]) * size

    def wrong(self, gfn: int, place: int) -> bool:
        """Whether a changed byte is seen; it is put back."""
        for c in (0, 1):
            self.ram.views[gfn, c][place] ^= 0xFF
        known = {
            id(one): bytes(one.defined)
            for ledger in (self.check._guest, self.check._vmm)
            for one in ledger.values()
        }
        found = self.do(OpKind.READ, 0)
        for ledger in (self.check._guest, self.check._vmm):
            for one in ledger.values():
                one.defined[:] = known[id(one)]
        for c in (0, 1):
            self.ram.views[gfn, c][place] ^= 0xFF
        return bool(found)


@pytest.fixture
def world() -> World:
    return World()


def stored(world: World, gfn: int = 1, place: int = 8, size: int = 8, kind=OpKind.WRITE) -> None:
    world.put(gfn, place, NEW, size)
    assert world.do(kind, NEW, place, size, page=gfn) == []


@pytest.mark.parametrize("kind", [OpKind.WRITE, OpKind.HOST_WRITE])
def test_a_store_is_known_to_the_byte(world: World, kind: OpKind) -> None:
    world.private[1] = kind is OpKind.WRITE
    stored(world, kind=kind)
    places = {place: world.wrong(1, place) for place in (7, 8, 15, 16, 0xFFF)}
    assert places == {7: False, 8: True, 15: True, 16: False, 0xFFF: False}


def test_a_store_over_two_pages_and_over_the_end_of_ram(world: World) -> None:
    world.put(1, 0xFF8, NEW, 8)
    world.put(2, 0, NEW, 8)
    assert world.do(OpKind.WRITE, NEW, 0xFF8, 16, page=1) == []
    assert [world.wrong(1, 0xFF8), world.wrong(2, 7), world.wrong(2, 8)] == [True, True, False]
    world.put(7, 0xFF8, NEW, 8)
    assert world.do(OpKind.WRITE, NEW, 0xFF8, 16, page=7) == []
    assert world.wrong(7, 0xFFF)


def test_a_store_ends_where_it_ends(world: World) -> None:
    stored(world, 2)
    stored(world, 1, 0xFFC, 4)
    assert world.wrong(2, 8), "a store that ends with its page says nothing of the next one"
    stored(world, 3, 0x20)
    stored(world, 3, 9, 1)
    assert world.wrong(3, 0x20)
    assert [world.wrong(3, place) for place in (8, 9, 10)] == [False, True, False]


def test_the_vmm_reads_with_c_0_also_where_the_page_is_private(world: World) -> None:
    world.ram.views[1, 0][8] = NEW
    assert world.do(OpKind.HOST_WRITE, NEW, 8, 1, page=1) == []
    world.ram.views[1, 0][8] = 0
    (message,) = world.do(OpKind.READ, 0)
    assert message.startswith("GPA 0x1000, read with C=0: byte 0x8 is 0x00, the VMM wrote 0x22")


def test_a_host_s_store_ends_with_its_page(world: World) -> None:
    world.private.setall(0)
    world.put(1, 0xFF8, NEW, 8)
    assert world.do(OpKind.HOST_WRITE, NEW, 0xFF8, 16, page=1) == []
    assert world.wrong(1, 0xFFF)
    assert not world.wrong(2, 0)


def test_the_guest_reads_by_its_entry_and_the_vmm_with_c_0(world: World) -> None:
    stored(world)
    world.ram.views[1, 0][8] = 0
    assert world.do(OpKind.READ, 0) == []
    world.ram.views[1, 1][10:12] = b"\0\0"
    (message,) = world.do(OpKind.READ, 0)
    assert message == (
        "GPA 0x1000, read with C=1: byte 0xa is 0x00, the guest wrote 0x22 (2 bytes differ)"
    )
    assert world.do(OpKind.READ, 0) == [], "once"
    world.private[2] = 0
    stored(world, 2, kind=OpKind.HOST_WRITE)
    world.ram.views[2, 1][8] = 0
    assert world.do(OpKind.READ, 0) == []
    world.ram.views[2, 0][8] = 0
    (message,) = world.do(OpKind.READ, 0)
    assert message.startswith("GPA 0x2000, read with C=0: byte 0x8 is 0x00, the VMM wrote 0x22")


def test_a_flip_forgets_its_pages(world: World) -> None:
    world.private.setall(0)
    stored(world, 2, 0)
    assert world.wrong(2, 0)
    for gfn in (1, 2, 3, 4):
        stored(world, gfn)
        stored(world, gfn, 0x20, kind=OpKind.HOST_WRITE)
    assert world.do(OpKind.SET_MEMORY_ENCRYPTED, 2, 0, flips=[(2, 2)]) == []
    assert [world.wrong(gfn, 8) for gfn in (1, 2, 3, 4)] == [True, False, False, True]
    assert not world.wrong(2, 0)
    assert [world.wrong(gfn, 0x20) for gfn in (1, 2, 3, 4)] == [True, False, False, True]


@pytest.mark.parametrize(
    "kind", [OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED]
)
@pytest.mark.parametrize(("value", "is_kept"), [(0, True), (1, False)])
def test_an_early_conversion_keeps_the_guest_s_bytes(world, kind, value, is_kept) -> None:
    world.private.setall(0)
    stored(world)
    stored(world, 2, kind=OpKind.HOST_WRITE)
    assert world.do(kind, 2 << 12, 0, value=value, flips=[(1, 2)]) == []
    assert world.wrong(1, 8) is is_kept
    assert not world.wrong(2, 8)


def test_the_last_writer_of_a_byte_is_the_one_who_may_rely_on_it(world: World) -> None:
    world.private.setall(0)
    stored(world, kind=OpKind.HOST_WRITE)
    world.put(1, 8, OTHER, 4)
    assert world.do(OpKind.WRITE, OTHER, 8, 4, page=1) == []
    assert [world.wrong(1, place) for place in (8, 11, 12)] == [True, True, True]
    world.put(1, 8, NEW, 2)
    assert world.do(OpKind.HOST_WRITE, NEW, 8, 2, page=1) == []
    assert world.wrong(1, 8)
    assert world.do(OpKind.READ, 0) == []


def test_pages_of_which_the_guest_knows_nothing(world: World) -> None:
    """A VMM that stores into a private page, an alias with another C-bit, a store of a part of a
    word behind a page's end."""
    stored(world)
    assert world.do(OpKind.HOST_WRITE, OTHER, 8, 1, page=1) != [], "the VMM reads other bytes"
    world.put(1, 8, 0)
    assert world.do(OpKind.READ, 0) == []
    world.alias[0] = 0
    for page, is_known in ((0, False), (1, True), (2, True)):
        world.put(page + 4, 8)
        world.do(OpKind.WRITE, NEW, 8, 1, region=Region.V, page=page)
        assert world.wrong(page + 4, 8) is is_known
    world.put(2, 0xFFC, NEW, 4)
    world.put(3, 0, NEW, 4)
    world.do(OpKind.WRITE, NEW, 0xFFC, 8, page=2)
    assert world.wrong(2, 0xFFC)
    assert not world.wrong(3, 0)


@pytest.mark.parametrize(
    "kind",
    [
        *(OpKind.DMA_ALLOC, OpKind.DMA_FREE, OpKind.DMA_ALLOC_PAGES, OpKind.DMA_FREE_PAGES),
        OpKind.MIGRATE_STOP,
    ],
)
def test_what_moves_pages_about_leaves_nothing_known(world: World, kind: OpKind) -> None:
    world.private.setall(0)
    stored(world)
    stored(world, 2, kind=OpKind.HOST_WRITE)
    world.do(kind, 0, 1, 0)
    assert [world.wrong(1, 8), world.wrong(2, 8)] == [False, False]


def test_a_run_begins_with_nothing_known_and_a_store_that_fails_ends_so(world: World) -> None:
    world.private.setall(0)
    for end in ("first", "failed"):
        world.private[3] = 1
        stored(world)
        stored(world, 2, kind=OpKind.HOST_WRITE)
        world.do(OpKind.HOST_WRITE, NEW, 0, 1, page=3)
        if end == "first":
            world.index = 0
            world.do(OpKind.READ, 0)
        else:
            world.do(OpKind.WRITE, NEW, 0, 1, value=None)
        assert [world.wrong(1, 8), world.wrong(2, 8)] == [False, False]
    world.index = 0
    world.do(OpKind.READ, 0)
    stored(world, 3)
    assert world.wrong(3, 8), "the first operation of a run forgets spoilt pages"


def test_a_machine_without_caches_is_not_looked_at(world: World) -> None:
    assert world.do(OpKind.WRITE, NEW, 8, 1, ram=object()) == []
    assert CacheCheck.name == CACHE_LOSS
