# SPDX-License-Identifier: GPL-2.0-or-later
"""What no hypervisor may reach (N55): the check's rules on an RMP and a memory that are made by
hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.abi.addresses import Gva
from guestemu.abi.regions import Region
from guestemu.checks.page_states import CONTENT, PLAINTEXT, PageStateCheck
from guestemu.events.memory import LeafChange
from guestemu.events.tdx import MapGpaCall
from guestemu.machine.exits import Shutdown
from guestemu.machine.rmp import OWN_ASID, PLAIN, Rmp, RmpEntry
from guestemu.program.ops import Op, OpKind, canonical_op

FRAMES, SPARE, PAGE = 16, 8, 4096
DECRYPT = Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0))
ENCRYPT = Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0))
TWICE = "GPA {gpa:#x} has two validated system frames ({count} such frames): the hypervisor can"
END = Shutdown(reason="triple fault", rip=0)


class Ram:
    """Memory whose shared view is other bytes than the private one, unless `is_open`."""

    def __init__(self) -> None:
        self.data = bytearray((FRAMES + 1) * PAGE)
        self.is_open = False

    def read(self, gpa: int, size: int, private: bool = True) -> bytes:
        found = bytes(self.data[gpa : gpa + size])
        return found if private or self.is_open else bytes(byte ^ 0xFF for byte in found)


class World:
    """An SNP guest, or a TD, whose region D begins at frame 4."""

    def __init__(self, is_td: bool = False) -> None:
        self.rmp, self.ram = Rmp(FRAMES, SPARE), Ram()
        self.snp = SimpleNamespace(rmp=self.rmp, attacked=set(), reads_plain=lambda gfn: False)
        self.private = bitarray("1") * FRAMES
        self.guest = SimpleNamespace(
            snp=None if is_td else SimpleNamespace(snp=self.snp),
            td=SimpleNamespace() if is_td else None,
            gpa=lambda region, page: (4 + page) * PAGE,
            leaf_map=SimpleNamespace(private=self.private),
            machine=SimpleNamespace(ram=self.ram),
        )
        self.check = PageStateCheck()

    def after(
        self, op: Op, value=0, frames=None, index=1, end=None, flips=(), emitted=(), private=None
    ) -> list[tuple[str, str]]:
        seen = SimpleNamespace(
            index=index,
            op=op,
            outcome=SimpleNamespace(value=value, end=end),
            guest=self.guest,
            frames=frames,
            flips=list(flips),
            emitted=list(emitted),
            private_before=self.private if private is None else bitarray(private),
        )
        found = list(self.check.after(seen))
        assert all(one.op == index for one in found)
        return [(one.check, one.message) for one in found]

    def validate_twice(self, *gfns: int) -> None:
        """The hypervisor puts other memory behind frames, and the guest validates that."""
        for number, gfn in enumerate(gfns):
            self.rmp.map(gfn, FRAMES + number)
            entry = RmpEntry(assigned=True, asid=OWN_ASID, gfn=gfn)
            self.rmp.rmpupdate(FRAMES + number, entry)
            self.rmp.pvalidate(gfn, False, True)


def told(found: list[tuple[str, str]], check: str, begin: str) -> bool:
    return [(name, text.startswith(begin)) for name, text in found] == [(check, True)]


# Two validated frames -----------------------------------------------------------------------------


def test_a_frame_with_two_validated_frames() -> None:
    world = World()
    assert world.after(DECRYPT) == []
    world.validate_twice(6, 5)
    for op in (DECRYPT, Op(OpKind.READ, (0,))):
        assert told(world.after(op), "page-states", TWICE.format(gpa=5 * PAGE, count=2))
    assert World(is_td=True).after(DECRYPT) == []


def test_a_caller_that_encrypts_a_private_page_is_excused() -> None:
    for frames, private, is_excused in (
        ((5, 1), "1" * FRAMES, True),
        ((3, 3), "0000010000000000", True),
        ((5, 1), "1111101111111111", False),
        ((3, 2), "1" * FRAMES, False),
        ((6, 2), "1" * FRAMES, False),
        ((0, 99), "1" * FRAMES, True),
    ):
        world = World()
        world.validate_twice(5)
        found = world.after(ENCRYPT, frames=frames, private=private)
        assert (found == []) is is_excused
        assert (world.after(DECRYPT) == []) is is_excused, "also later"
        assert world.after(DECRYPT, index=0) != [], "in this program"
    world = World()
    world.validate_twice(5)
    assert world.after(DECRYPT, frames=(5, 1)) != []
    assert world.after(ENCRYPT) != []


# A conversion that was answered -------------------------------------------------------------------


def test_a_page_that_the_guest_was_told_is_private_is_validated() -> None:
    world = World()
    world.rmp.release(6, 2)
    assert world.after(ENCRYPT, frames=(4, 2)) == []
    message = f"GPA {6 * PAGE:#x} was encrypted and is shared"
    for frames in ((6, 1), (6, 2), (4, 3), (4, 99)):
        assert world.after(ENCRYPT, frames=frames) == [("page-states", message)], "the first"
    assert world.after(ENCRYPT, frames=(8, 99)) == []
    assert world.after(ENCRYPT, frames=(6, 1), value=1) == [], "it was not told so"
    assert world.after(ENCRYPT) == []
    assert world.after(DECRYPT, frames=(6, 1)) == []
    world.snp.attacked |= {6, 7}
    assert world.after(ENCRYPT, frames=(6, 2)) == [], "the hypervisor's doing"


# Who reads the plaintext --------------------------------------------------------------------------


def test_the_plaintext_of_an_attacked_page_is_its_guests() -> None:
    world = World()
    world.snp.attacked |= {6, 5}
    assert world.after(DECRYPT) == []
    world.ram.is_open = True
    text = ": an access with C=0 reads the plaintext of a validated page"
    assert world.after(DECRYPT) == [(PLAINTEXT, f"GPA {gfn * PAGE:#x}{text}") for gfn in (5, 6)]
    world.rmp.release(5, 2)
    assert world.after(DECRYPT) == [], "the guest gave them away"
    assert World(is_td=True).after(DECRYPT) == []


def test_a_host_that_reads_a_validated_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def host_access(entry: RmpEntry, is_write: bool):
        asked.append((entry.gfn, is_write))
        return PLAIN

    monkeypatch.setattr("guestemu.checks.page_states.host_access", host_access)
    world = World()
    world.snp.attacked |= {5}
    assert world.after(DECRYPT) == [
        (PLAINTEXT, f"GPA {5 * PAGE:#x}: the host reads the plaintext of a validated page")
    ]
    assert asked == [(5, False)]


def test_another_frame_that_reads_it() -> None:
    world = World()
    world.snp.attacked |= {5}
    world.rmp.map(7, 5)
    assert world.after(DECRYPT) == []
    world.snp.reads_plain = lambda gfn: True
    text = f"GPA {7 * PAGE:#x} reads the plaintext of the validated GPA {5 * PAGE:#x}"
    assert world.after(DECRYPT) == [(PLAINTEXT, text)]
    world.snp.reads_plain = lambda gfn: gfn != 7
    assert world.after(DECRYPT) == []


# Content ------------------------------------------------------------------------------------------


def write(page: int, value: int = 3, offset: int = 0, size: int = 1, region=Region.D) -> Op:
    return canonical_op(Op(OpKind.WRITE, (value, offset, size), region, page))


def read(page: int, offset: int = 0, region=Region.D) -> Op:
    return canonical_op(Op(OpKind.READ, (offset,), region, page))


@pytest.fixture(params=[False, True], ids=["snp", "td"])
def written(request) -> World:
    """A world in which the guest wrote 3 to the second byte of its frame 5."""
    world = World(request.param)
    world.ram.data[5 * PAGE + 1] = 3
    assert world.after(write(1, offset=1)) == []
    return world


def test_a_read_gives_what_was_written(written) -> None:
    assert written.after(read(1), value=0x300) == []
    assert written.after(read(1), value=7) == [
        (CONTENT, f"GPA {5 * PAGE:#x} reads as 0x7, and 0x300 was there")
    ]
    assert written.after(read(1, offset=1), value=3) == []
    assert written.after(read(1, offset=1), value=0x300) != []
    for unknown in (read(2), read(1, region=Region.V), read(1, offset=PAGE - 7)):
        assert written.after(unknown, value=7) == []
    assert written.after(read(1, offset=PAGE - 8), value=7) != []
    assert written.after(read(1), value=None) == []
    assert written.after(read(1), value=7, index=0) == [], "of another program"


def test_what_is_converted_may_hold_anything(written) -> None:
    def is_known(world, op=DECRYPT, **what) -> bool:
        world.after(op, **what)
        return world.after(read(1), value=7) != []

    def flip(gfn: int, pages: int) -> LeafChange:
        return LeafChange(Gva(0), gfn, pages, private=False, changed=pages, is_alias=False)

    def call(gpa: int, size: int) -> tuple[int, MapGpaCall]:
        return 0, MapGpaCall(gpa, size, private=False, status=0, next_gpa=0, table_writes=0)

    for gone in (flip(5, 1), flip(4, 2), flip(0, FRAMES)):
        assert is_known(written, write(1, offset=1))
        assert not is_known(written, flips=[gone])
        assert is_known(written, write(1, offset=1))
        gpa, size = gone.gfn * PAGE, gone.pages * PAGE
        assert not is_known(written, emitted=[call(gpa, size)])
    for other in (flip(4, 1), flip(6, 9)):
        assert is_known(written, write(1, offset=1))
        gpa, size = other.gfn * PAGE, other.pages * PAGE
        assert is_known(written, flips=[other], emitted=[call(gpa, size), (0, other)])
    assert not is_known(written, value=None, flips=[flip(5, 1)])


def test_only_whole_private_pages_that_a_store_reached_are_known() -> None:
    def known(*stores: Op, value=0, shared=()) -> list[int]:
        world = World()
        for gfn in shared:
            world.private[gfn] = 0
        for store in stores:
            world.after(store, value)
        return [page for page in range(6) if world.after(read(page), value=7)]

    assert known(write(1)) == [1]
    assert known(write(1), value=None) == []
    assert known(write(1, offset=PAGE - 1, size=1)) == [1]
    assert known(write(1, offset=PAGE - 1, size=2)) == [1, 2]
    assert known(write(1, offset=PAGE)) == [2]
    assert known(write(1, size=2 * PAGE)) == [1, 2]
    assert known(write(1, size=2 * PAGE + 1)) == [1, 2, 3]
    assert known(write(1, size=2 * PAGE), shared=[6]) == [1]
    assert known(write(1, region=Region.V)) == []
    assert known(write(1), write(1, region=Region.V)) == []


# Programs -----------------------------------------------------------------------------------------


def test_after_the_guests_end_nothing_is_judged() -> None:
    world = World()
    world.validate_twice(5)
    assert world.after(DECRYPT, end=END) != [], "the last operation is"
    assert world.after(DECRYPT) == []
    assert world.after(DECRYPT, index=0) != []
    assert world.after(DECRYPT) != []


def test_guests_without_page_states_and_hosts_that_do_not_lie() -> None:
    world = World(is_td=True)
    world.guest.td = None
    world.after(write(1))
    assert world.after(read(1), value=7) == []
    world = World()
    world.guest.snp.snp = None
    world.validate_twice(5)
    assert world.after(DECRYPT) == []
    assert [PageStateCheck.applies(SimpleNamespace(lie=lie)) for lie in ("", "x")] == [False, True]
