# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration loses (H.4 item 4), on a guest of eight frames written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.regions import Region
from guestemu.checks import lost
from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT, LostCheck
from guestemu.program.ops import Op, OpKind

FRAMES = 8
CBIT = 1 << 47
ROOT = 0x5000
FLIP = SimpleNamespace(gfn=2, pages=2)
OLD, NEW = 0x11, 0x22


class World:
    """Page N of region D is frame N + 1; page 7 is beyond RAM, page 6 is not mapped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages = {gfn: bytearray([OLD]) * PAGE_SIZE for gfn in range(FRAMES)}
        self.shared: set[int] = set()
        self.check = LostCheck()
        register = {"cr3": CBIT | ROOT | 0x18}
        machine = SimpleNamespace(
            current=SimpleNamespace(read_register=register.__getitem__),
            ram=SimpleNamespace(frames=FRAMES),
            bit="bit",
            pte_cbit=CBIT,
        )
        self.guest = SimpleNamespace(machine=machine, gva=lambda _region, page: page << 12)
        monkeypatch.setattr(lost, "translate", self._translate)
        monkeypatch.setattr(lost, "peek", self._peek)

    def _translate(self, _ram, bit, root, gva):
        assert (bit, root) == ("bit", ROOT)
        gfn = (gva >> 12) + 1
        return None if gfn == 7 else (gfn << 12, gfn not in self.shared)

    def _peek(self, _ram, gpa, size, is_private):
        assert is_private is (gpa >> 12 not in self.shared)
        return bytes(self.pages[gpa >> 12][:size])

    def do(self, kind: OpKind, *arguments: int, page: int = 0, value: int | None = 0, flips=()):
        view = SimpleNamespace(
            index=4,
            op=Op(kind, arguments, Region.D, page),
            guest=self.guest,
            outcome=SimpleNamespace(value=value),
            flips=flips,
        )
        return list(self.check.after(view))

    def moved(self) -> None:
        assert self.do(OpKind.MIGRATE_STOP) == []

    def read(self, page: int) -> list[str]:
        return [found.check for found in self.do(OpKind.READ, 0, page=page)]

    def write(self, page: int, value: int, offset: int, size: int) -> None:
        """A store, as the check sees it: memory has changed before."""
        for place in range((page + 1) * PAGE_SIZE + offset, (page + 1) * PAGE_SIZE + offset + size):
            self.pages[place // PAGE_SIZE][place % PAGE_SIZE] = value
        assert self.do(OpKind.WRITE, value, offset, size, page=page) == []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize("kind", [OpKind.MIGRATE_START, OpKind.MIGRATE_HANDLER])
def test_the_pages_of_a_migration_are_known_from_its_start(world: World, kind: OpKind) -> None:
    world.do(kind, 2, page=1)
    for gfn in world.pages:
        world.pages[gfn][:] = b"x" * PAGE_SIZE
    assert world.read(1) == [], "not moved yet"
    world.moved()
    assert [bool(world.read(page)) for page in range(5)] == [False, True, True, False, False]
    world.do(OpKind.MIGRATE_STOP, value=-1)
    assert world.read(1) == [], "a migration that failed moved nothing"


def test_pages_that_are_not_mapped_or_no_ram_are_passed_over(world: World) -> None:
    world.do(OpKind.MIGRATE_START, 4, page=5)
    world.moved()
    world.pages[6][:] = b"x" * PAGE_SIZE
    assert world.read(5) == [LOST_STRICT, LOST_DEFINED]
    assert world.read(6) == []
    assert world.read(7) == []


def test_a_store_is_known_to_the_byte(world: World) -> None:
    world.do(OpKind.MIGRATE_START, 3)
    world.write(0, NEW, 0xFF0, 0x20)
    world.write(2, NEW, 0, PAGE_SIZE)
    world.moved()
    assert [world.read(page) for page in range(3)] == [[]] * 3
    for page, place in ((0, 0xFF0), (0, 0xFEF), (1, 0xF), (1, 0x10), (2, 0), (2, 0xFFF)):
        world.pages[page + 1][place] ^= 0xFF
        assert world.read(page) == [LOST_STRICT, LOST_DEFINED], (page, place)
        world.pages[page + 1][place] ^= 0xFF


def test_a_page_of_no_migration_is_known_from_its_first_store(world: World) -> None:
    world.write(1, NEW, 0x10, 1)
    world.moved()
    world.pages[2][0x800] = 0
    world.pages[3][0x800] = 0
    assert world.read(1) == [LOST_STRICT, LOST_DEFINED]
    assert world.read(2) == []
    world.pages[2][0x800] = OLD
    assert world.read(1) == []


def test_a_store_makes_known_the_pages_that_it_touches_and_no_other(world: World) -> None:
    world.write(1, NEW, 0xFF0, 0x10)
    world.write(3, NEW, 0xFFF, 2)
    world.write(5, NEW, 0xFFF, 2)
    world.moved()
    for gfn in world.pages:
        world.pages[gfn][0x800] ^= 0xFF
    assert [bool(world.read(page)) for page in range(7)] == [
        *(False, True, False, True, True, True),
        False,
    ]


def test_a_flip_leaves_only_what_is_stored_after_it_defined(world: World) -> None:
    world.do(OpKind.MIGRATE_START, 4)
    world.do(OpKind.SET_MEMORY_DECRYPTED, 2, 0, page=1, flips=[FLIP])
    world.write(1, NEW, 0x10, 2)
    world.moved()
    for page, place, found in (
        (1, 0x0F, [LOST_STRICT]),
        (1, 0x10, [LOST_STRICT, LOST_DEFINED]),
        (1, 0x11, [LOST_STRICT, LOST_DEFINED]),
        (1, 0x12, [LOST_STRICT]),
        (2, 0, [LOST_STRICT]),
        (0, 0, [LOST_STRICT, LOST_DEFINED]),
        (3, 0, [LOST_STRICT, LOST_DEFINED]),
    ):
        world.pages[page + 1][place] ^= 0xFF
        assert world.read(page) == found, (page, place)
        world.pages[page + 1][place] ^= 0xFF


def test_a_store_that_did_not_return_leaves_nothing_known(world: World) -> None:
    world.do(OpKind.MIGRATE_START, 2)
    world.do(OpKind.READ, 0, page=0, value=None)
    world.do(OpKind.WRITE, NEW, 0, 1, page=0, value=None)
    world.moved()
    world.pages[2][0] = 0
    assert world.read(1) == []


def test_an_operation_without_a_value_keeps_what_is_known(world: World) -> None:
    world.do(OpKind.MIGRATE_START, 2)
    world.do(OpKind.READ, 0, page=0, value=None)
    world.moved()
    world.pages[2][0] = 0
    assert world.read(1) == [LOST_STRICT, LOST_DEFINED]


def test_the_message_names_page_view_and_byte(world: World) -> None:
    world.do(OpKind.MIGRATE_START, 2)
    world.shared.add(2)
    world.moved()
    world.pages[2][0x30] = 0x5A
    world.pages[2][0x40] = 0
    strict, _ = world.do(OpKind.READ, 0, page=1)
    assert strict.message == (
        "GPA 0x2000, read through a shared PTE at the destination: byte 0x30 is 0x5a, the guest "
        "wrote 0x11 (2 bytes differ)"
    )
    world.pages[1][0] = 0
    assert "through a private PTE" in world.do(OpKind.READ, 0, page=0)[0].message
