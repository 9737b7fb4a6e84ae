# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the checks that look into a host: guest_memfd, mirror VMs; on views written by hand."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.checks import mirror
from guestemu.checks.guest_memory import GuestMemoryCheck
from guestemu.events.exits import HypercallExit
from guestemu.host.kvm.guest_memory import GuestMemory
from guestemu.host.kvm.in_place_memory import InPlaceMemory
from guestemu.host.mirror.world import Seen
from guestemu.program.ops import Op, OpKind

PAGE = 4096
FRAMES = 8
DONE, REFUSED = (HypercallExit(12, (0, 1, 0, 0), ret, 0) for ret in (0, 22))


# guest_memfd --------------------------------------------------------------------------------------


class _Memory(SimpleNamespace):
    @property
    def call_count(self) -> int:
        return len(self.calls)


class Memfd:
    """A host with guest_memfd, every frame private and backed by it, and nothing else there."""

    def __init__(self, **maps: str) -> None:
        given = {name: bitarray(bits) for name, bits in maps.items()}
        self.guest_memory = _Memory(
            frames=FRAMES,
            calls=[],
            private_backing=given.get("backing", bitarray("1" * FRAMES)),
            shared_backing=given.get("shared_backing", bitarray("0" * FRAMES)),
            attributes=given.get("private", bitarray("1" * FRAMES)),
            shared_pages=given.get("shared_pages", bitarray("0" * FRAMES)),
            private_pages=given.get("private_pages", bitarray("0" * FRAMES)),
            device_map=given.get("device", bitarray("0" * FRAMES)),
            take_lost=lambda: given.pop("lost", None),
            take_news=lambda: True,
        )
        self.guest_memory.range_of = partial(GuestMemory.range_of, self.guest_memory)

    def call(self, first=0, pages=FRAMES, result=0, name="KVM_SET_MEMORY_ATTRIBUTES"):
        arguments = (first * PAGE, pages * PAGE, 8)
        one = SimpleNamespace(name=name, arguments=arguments, result=result)
        self.guest_memory.calls.append(one)
        return self


def judged(host: object, *exits: object, index: int = 0, check: GuestMemoryCheck | None = None):
    view = SimpleNamespace(host=host, index=index, exits=list(exits), op=Op(OpKind.HYPERCALL))
    found = (check or GuestMemoryCheck()).after(view)
    return [one.message.removeprefix("host: GPA ") for one in found]


COPY, PRIVATE = "is private and keeps its shared copy", "is shared and keeps its private page"
DEVICE = "is private and mapped for a device"
SHARED_LOST = "is shared, was not converted, and its copy was freed"
PRIVATE_LOST = "is private, was not converted, and its page was freed"


@pytest.mark.parametrize(
    ("maps", "found"),
    [
        ({}, []),
        ({"shared_pages": "10000000"}, [f"0x0 {COPY}"]),
        ({"shared_pages": "01100000"}, [f"0x1000 {COPY} (2 frames)"]),
        ({"device": "10000000"}, [f"0x0 {DEVICE}"]),
        (
            {"device": "00000011", "shared_pages": "1" * 8},
            [f"0x0 {COPY} (8 frames)", f"0x6000 {DEVICE} (2 frames)"],
        ),
        ({"private": "0" * 8, "shared_pages": "1" * 8, "device": "1" * 8}, []),
        ({"private": "0" * 8, "private_pages": "10000000"}, [f"0x0 {PRIVATE}"]),
        ({"private": "00001111", "private_pages": "00011000"}, [f"0x3000 {PRIVATE}"]),
        ({"private_pages": "1" * 8}, []),
        ({"shared_pages": "01100000", "backing": "10111111"}, [f"0x2000 {COPY}"]),
        ({"private": "0" * 8, "private_pages": "11000000", "backing": "0" * 8}, []),
    ],
)
def test_attributes_backing_and_device_map_agree(maps, found) -> None:
    assert judged(Memfd(**maps).call()) == found


def test_only_the_frames_that_were_converted_are_compared() -> None:
    host = Memfd(shared_pages="01000010").call(2, 4)
    assert judged(host) == []
    assert judged(host.call(1, 1)) == [f"0x1000 {COPY}"]
    assert judged(Memfd(shared_pages="01000010").call(5, 99)) == [f"0x6000 {COPY}"]
    assert judged(Memfd(shared_pages="01000010").call(2, 5)) == [f"0x6000 {COPY}"]
    assert judged(Memfd(shared_pages="01000010").call(2, 4).call(1, 1)) == [f"0x1000 {COPY}"]


@pytest.mark.parametrize(
    ("maps", "found"),
    [
        ({"lost": "00110000"}, []),
        ({"lost": "01110000"}, [f"0x1000 {PRIVATE_LOST}"]),
        ({"lost": "00000111"}, [f"0x6000 {PRIVATE_LOST} (2 frames)"]),
        (
            {"lost": "11000000", "private": "01111111"},
            [f"0x0 {SHARED_LOST}", f"0x1000 {PRIVATE_LOST}"],
        ),
    ],
)
def test_what_is_freed_in_use_was_converted(maps, found) -> None:
    assert judged(Memfd(**maps).call(2, 4)) == found
    assert judged(Memfd(**maps).call(0, 99)) == []
    assert judged(Memfd(**maps).call(2, 4), REFUSED) == []


@pytest.mark.parametrize(
    ("device", "value", "found"),
    [
        ("00000000", 0, []),
        ("11111100", 0, []),
        ("00001111", 0, ["0x6000 is gone and mapped for a device (2 frames)"]),
        ("00000001", 0, ["0x7000 is gone and mapped for a device"]),
        ("00001111", 1, []),
        ("00000000", 1, []),
    ],
)
def test_what_was_unplugged_is_mapped_for_no_device(device, value, found) -> None:
    host = Memfd(device=device, backing="11111000", shared_backing="00000100")
    outcome = SimpleNamespace(value=value)
    op = Op(OpKind.UNPLUG_SLOT)
    view = SimpleNamespace(host=host, index=0, exits=[], op=op, outcome=outcome)
    assert [one.message.removeprefix("host: GPA ") for one in GuestMemoryCheck().after(view)] == (
        found
    )


def in_place(mapped: str, private: str, result: int = 0) -> SimpleNamespace:
    """A host whose memory converts in place, after one conversion of frames 2 to 5."""
    memory = InPlaceMemory(FRAMES)
    memory.map_for_device(0, PAGE, True)
    memory.device_map[:] = bitarray(mapped)
    memory.attributes[:] = bitarray(private)
    memory.private_pages[:] = memory.attributes
    memory.shared_pages[:] = ~memory.attributes
    memory.pin(2, 1)
    memory.order_failure(0, result)
    memory.convert(0, 2 * PAGE, 4 * PAGE, 8 * memory.is_private(2))
    return SimpleNamespace(guest_memory=memory)


def test_only_what_converts_in_place_is_compared_with_the_device_map() -> None:
    host = in_place("1" * 8, "0" * 8)
    host.guest_memory.attributes[3] = True
    assert f"0x3000 {DEVICE}" in judged(host)
    unbacked = in_place("1" * 8, "0" * 8)
    unbacked.guest_memory.attributes[3] = True
    unbacked.guest_memory.private_backing[3] = False
    assert judged(unbacked) == []


@pytest.mark.parametrize("exit_", [DONE, REFUSED])
@pytest.mark.parametrize(
    ("mapped", "private", "found"),
    [
        ("11111111", "00000000", []),
        ("00000000", "11111111", []),
        ("11001111", "00110000", []),
        ("01111110", "01000001", []),
        ("11110011", "00000000", ["0x4000 is shared and not mapped for a device (2 frames)"]),
        ("00001000", "11111111", ["0x4000 is private and mapped for a device"]),
        ("00100000", "11110111", ["0x2000 is private and mapped for a device (2 frames)"]),
    ],
)
@pytest.mark.parametrize("result", [0, 11])
def test_the_device_map_follows_what_converts_in_place(
    mapped: str, private: str, found: list[str], exit_: HypercallExit, result: int
) -> None:
    assert judged(in_place(mapped, private, result), exit_) == found


def test_a_vmm_without_a_device_maps_nothing() -> None:
    host = in_place("00000000", "00000000")
    calls = host.guest_memory.calls
    calls[:] = [one for one in calls if "VFIO" not in one.name]
    assert judged(host, DONE) == []


def test_a_range_in_which_nothing_can_be_wrong_is_not_compared(monkeypatch) -> None:
    def compares(self, op, memory, first, end):
        raise AssertionError("compared")

    monkeypatch.setattr(GuestMemoryCheck, "_judge", compares)
    for maps in (
        {},
        {"private": "0" * 8, "shared_pages": "1" * 8},
        {"private": "0" * 8, "device": "1" * 8},
        {"private_pages": "1" * 8},
        {"private": "00000001", "shared_pages": "11111110", "private_pages": "00000001"},
    ):
        assert judged(Memfd(**maps).call(0, 7 if len(maps) == 3 else 8)) == []


def test_what_was_refused_promises_nothing() -> None:
    wrong = {"shared_pages": "1" * 8}
    assert judged(Memfd(**wrong).call(), DONE)
    assert not judged(Memfd(**wrong).call(), DONE, REFUSED)
    assert not judged(Memfd(**wrong).call(result=-22))
    assert not judged(Memfd(**wrong).call(name="fallocate"))
    assert not judged(Memfd(**wrong))


def test_each_call_is_judged_once_in_a_program() -> None:
    check, host = GuestMemoryCheck(), Memfd(shared_pages="1" * 8).call()
    assert judged(host, check=check)
    assert not judged(host, index=1, check=check)
    assert len(judged(host.call(), index=2, check=check)) == 1
    assert len(judged(host, index=0, check=check)) == 2, "of the next program"
    del host.guest_memory.calls[1:]
    assert len(judged(host, index=1, check=check)) == 1, "after a reset"
    assert judged(Memfd(shared_pages="1" * 8).call(), index=1), "the first that it sees"
    assert not judged(SimpleNamespace(), check=check)
    assert GuestMemoryCheck.applies(host)
    assert not GuestMemoryCheck.applies(SimpleNamespace())


# Mirror VMs ---------------------------------------------------------------------------------------


class Mirrored:
    """A host with a migration through handlers whose last operation did what `seen` says."""

    def __init__(self, context_problem: str = "", **seen: object) -> None:
        self.context_problem = context_problem
        self._world = SimpleNamespace(seen=Seen(**seen))

    def mirror_world(self) -> SimpleNamespace:
        return self._world

    def mirror_context(self, is_move: bool, between: int) -> int:
        return 0


def threats(host: object, kind: OpKind = OpKind.MIRROR_MIGRATE) -> list[str]:
    view = SimpleNamespace(host=host, index=1, op=Op(kind))
    return [one.check for one in mirror.MirrorCheck().after(view)]


STOP = SimpleNamespace(nr=1, address=0x1000, cause=SimpleNamespace(value="fault"), detail=4, rip=8)


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        ({"stop": STOP}, mirror.STOPPED),
        ({"exported": True}, mirror.EXPORTED),
        ({"is_readable": True}, mirror.READABLE),
        ({"accepted": "a packet"}, mirror.ACCEPTED),
        ({"damaged": (0x1000,)}, mirror.OVERWRITTEN),
        ({"skipped": True}, mirror.SKIPPED),
        ({"lost": "a page"}, mirror.LOST),
    ],
)
def test_each_threat_is_a_violation_of_its_name(seen, name) -> None:
    assert threats(Mirrored(**seen)) == [name]
    assert threats(Mirrored(**seen), OpKind.MIRROR_CONTEXT) == []
    assert threats(Mirrored()) == []


def test_the_owner_of_an_asid_is_judged_after_its_capability() -> None:
    wrong = Mirrored("two owners")
    assert threats(wrong, OpKind.MIRROR_CONTEXT) == [mirror.CONTEXT]
    assert threats(wrong) == []
    assert threats(Mirrored(), OpKind.MIRROR_CONTEXT) == []
    assert threats(SimpleNamespace()) == []
    assert mirror.MirrorCheck.applies(wrong)
    assert not mirror.MirrorCheck.applies(SimpleNamespace())
