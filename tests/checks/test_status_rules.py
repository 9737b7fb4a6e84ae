# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_HC_MAP_GPA_RANGE at its borders (K3-c, K3-d, K3-f) and conversions (H.4 item 1), on
operations written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.abi.regions import Region
from guestemu.checks.base import PAGE_ENC_CONTRACTS
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.record import RecordCheck
from guestemu.checks.results import Reference, ResultCheck, answers_left, is_open
from guestemu.events.exits import HypercallExit, MapGpaRangeExit, RdmsrExit
from guestemu.host.kvm.guest_memory import Slot
from guestemu.machine.exits import MEMORY_FAULT
from guestemu.program.ops import Op, OpKind

FRAMES = 16
EPERM, ENOENT, EIO, ENOMEM, EBUSY, EINVAL, ENOSYS = 1, 2, 5, 12, 16, 22, 1000
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
JUNK = 1 << 32
PRIVATE = 1 << 4
ALL = "1" * FRAMES
MSR = RdmsrExit(0x8B, (), 0, 0)


def call(ret=0, gpa=0x1000, pages=1, attributes=0, nr=12, cpl=0, is_64bit=True, a3=0):
    value = None if ret is None else ret & (U64 if is_64bit else U32)
    return HypercallExit(nr, (gpa, pages, attributes, a3), value, 0, cpl, is_64bit)


@pytest.mark.parametrize("kind", [RecordCheck, ResultCheck])
def test_rules_of_the_merged_abi_hold_for_hosts_of_no_patch_set(kind) -> None:
    hosts = [SimpleNamespace(contract=name) for name in ("map-gpa-range", "")]
    assert all(map(kind.applies, hosts))
    older = [SimpleNamespace(contract=name) for name in PAGE_ENC_CONTRACTS]
    assert not any(map(kind.applies, older))


# The record -------------------------------------------------------------------------------------


def recorded(after, *exits, before=ALL, frames=None, keeps=True, injected=(0, 0), holes=()):
    host = SimpleNamespace(
        contract_state=keeps,
        private_map=lambda: bitarray(after.ljust(FRAMES, "1")),
        open_frames=holes,
    )
    view = SimpleNamespace(
        index=3,
        exits=list(exits),
        frames=frames,
        op=Op(OpKind.HYPERCALL),
        host=host,
        host_before=bitarray(before),
        injected=injected,
    )
    return [found.message for found in RecordCheck().after(view)]


@pytest.mark.parametrize(
    ("after", "gfn", "value", "found"),
    [
        ("1", 4, 0, []),
        ("111100", 4, 0, ["0x4000"]),
        ("111110", 4, 0, ["0x5000"]),
        ("111111001", 4, 0, []),
        ("001111", 4, 0, []),
        ("111100", 4, -12, []),
        ("111100", 6, 0, []),
    ],
)
def test_memory_that_was_plugged_is_private(after, gfn, value, found) -> None:
    """Frames 4 and 5 are a slot that was plugged; two pages from `gfn` on were asked for."""
    slot = Slot(4 << 12, 2 << 12)
    host = SimpleNamespace(
        contract_state=True,
        private_map=lambda: bitarray(after.ljust(FRAMES, "1")),
        plugged=[slot],
    )
    for kind in (OpKind.HOST_COMMIT_SLOT, OpKind.HYPERCALL):
        view = SimpleNamespace(
            index=3,
            exits=[],
            frames=None,
            op=Op(kind, (gfn, 2)),
            host=host,
            outcome=SimpleNamespace(value=value),
        )
        told = [one.message for one in RecordCheck().after(view)]
        expected = found if kind is OpKind.HOST_COMMIT_SLOT else []
        assert told == [
            f"host: GPA {gpa} was plugged and is recorded as shared" for gpa in expected
        ]


@pytest.mark.parametrize(
    ("exits", "after"),
    [
        ((call(),), "10"),
        ((call(pages=2),), "100"),
        ((call(pages=2), call(gpa=0x2000, attributes=PRIVATE)), "101"),
        ((call(attributes=0xF, a3=PRIVATE),), "10"),
        ((call(gpa=0xF000, pages=5),), "1" * 15 + "0"),
        ((call(pages=U64 - 1),), "1" + "0" * 15),
        ((call(pages=U64),), ALL),
        ((call(gpa=0xFFFFF << 12, pages=U32, is_64bit=False),), ALL),
        ((call(pages=0),), ALL),
        ((call(gpa=0x1001),), ALL),
        ((call(cpl=3),), ALL),
        ((call(nr=11),), ALL),
        ((call(nr=JUNK | 12),), ALL),
        ((call(nr=JUNK | 12, gpa=JUNK | 0x1000, pages=JUNK | 1, is_64bit=False),), "10"),
        ((call(ret=-EINVAL),), ALL),
        ((call(ret=1),), ALL),
        ((call(ret=None),), ALL),
        ((MSR, call()), "10"),
    ],
)
def test_the_record_is_what_was_answered_with_0(exits, after) -> None:
    assert recorded(after, *exits) == []
    other = bitarray(after.ljust(FRAMES, "1"))
    other.invert(FRAMES // 2)
    assert recorded(other.to01(), *exits) != []


def test_an_ordered_answer_is_used_up_by_what_reaches_user_space() -> None:
    """An MSR and a call that KVM refuses do not; the answer of an ordered one records nothing."""
    passed = (MSR, call(ret=-EPERM, cpl=3))
    calls = [call(gpa=page << 12) for page in range(3)]
    assert recorded("110", *passed, *calls, injected=(0, 2)) == []
    assert recorded("101", *passed, *calls[1:], call(gpa=0x1000), injected=(0, 2)) == []
    assert recorded("1110", *passed, *calls, injected=(0, 2)) != []


def test_whose_record_is_not_looked_at() -> None:
    assert recorded("0", call()) != []
    assert recorded("0") == []
    assert recorded("0", call(), frames=(0, 1)) == []
    assert recorded("0", call(), keeps=False) == []
    assert recorded("00", call(), holes=((0, 1),)) == []


def test_a_wrong_record_is_told_by_its_first_page() -> None:
    (one,) = recorded("11", call(), before=ALL)
    assert one == (
        "host: GPA 0x1000 is recorded as private, which no answered notification says "
        "(1 frame differs)"
    )
    (two,) = recorded("1100", call(gpa=0, pages=2), before=ALL)
    assert "GPA 0x0 is recorded as private" in two
    assert "(4 frames differ)" in two
    (three,) = recorded("1100", call(gpa=0x3000), before=ALL)
    assert "GPA 0x2000 is recorded as shared" in three


# Conversions ------------------------------------------------------------------------------------


def converted(
    tables="1001",
    record="1001",
    before=ALL,
    private=False,
    frames=(1, 2),
    value=0,
    alias=None,
    keeps=True,
    holes=(),
    became=False,
):
    """The messages about a conversion of two pages from 1 on; `alias` is that mapping's map."""
    leaf_map = SimpleNamespace(
        private=bitarray(tables.ljust(FRAMES, "1")),
        alias=bitarray((alias or "").ljust(FRAMES, "1")),
        became=lambda *_: became,
    )
    host = SimpleNamespace(
        records_conversions=keeps,
        private_map=lambda: bitarray(record.ljust(FRAMES, "1")),
        open_frames=holes,
    )
    view = SimpleNamespace(
        index=1,
        op=Op(OpKind.SET_MEMORY_DECRYPTED, (2, 0), page=1),
        frames=frames,
        outcome=SimpleNamespace(value=value),
        guest=SimpleNamespace(leaf_map=leaf_map),
        host=host,
        host_before=bitarray(before),
        private_before=bitarray(before),
        wants_private=private,
        region=Region.D if alias is None else Region.V,
    )
    return [found.message for found in ConversionCheck().after(view)]


def test_tables_and_record_say_what_was_asked_for() -> None:
    assert converted() == []
    assert converted("1", "1", before="1001".ljust(FRAMES, "1"), private=True) == []
    assert converted("1" * 15 + "0", "1" * 15 + "0", frames=(15, 5)) == []
    (tables,) = converted(tables="1011")
    assert tables == (
        "page tables: GPA 0x2000 is private, expected shared "
        "(inside the converted range [0x1000, 0x3000); 1 frame differs)"
    )
    (host,) = converted(record="00001")
    assert host == (
        "host: GPA 0x0 is shared, expected private "
        "(outside the converted range [0x1000, 0x3000); 2 frames differ)"
    )
    (end,) = converted(record="1000")
    assert "GPA 0x3000 is shared, expected private (outside" in end
    (begin,) = converted(record="1101")
    assert "GPA 0x1000 is private, expected shared (inside" in begin


def test_which_conversions_are_judged() -> None:
    assert converted("1", "1", value=-EINVAL) == []
    assert converted("1", "1", value=1) == []
    assert converted("1", "1", frames=None) == []
    assert converted(record="1", keeps=False) == []
    assert converted(record="1011", holes=((2, 3),)) == []
    assert converted(tables="1", became=True) == []


def test_an_alias_follows_its_frames() -> None:
    assert converted(alias="1001") == []
    (message,) = converted(alias="1011")
    assert message == ("alias mapping: 1 of 2 pages of the range are not shared, its frames are")
    (both,) = converted(alias="1111")
    assert "2 of 2 pages" in both


def test_a_page_that_maps_another_frame_than_before() -> None:
    def moved(pages, before=0, frames=(1, 1)):
        leaf_map = SimpleNamespace(moved=set(pages))
        guest = SimpleNamespace(leaf_map=leaf_map)
        view = SimpleNamespace(index=0, frames=frames, guest=guest, moved_before=before)
        return [found.message for found in MappingCheck().after(view)]

    assert moved([]) == []
    assert moved([0x5000], before=1) == []
    assert moved([0x5000], frames=None) == []
    (message,) = moved([0x7000, 0x5000, 0x6000], before=1)
    assert message.startswith("2 pages now map another frame than before the conversion, the first")
    assert "at 0x5000:" in message


# Answers ----------------------------------------------------------------------------------------


def answers(*exits, value=None, kind=OpKind.HYPERCALL, injected=(0, 0), holes=(), **host):
    fields = {"contract": "map-gpa-range", "has_failing_kernel": False, "open_frames": holes}
    view = SimpleNamespace(
        index=2,
        op=SimpleNamespace(kind=kind),
        exits=list(exits),
        host=SimpleNamespace(**fields | host),
        host_before=bitarray(ALL),
        injected=injected,
        outcome=SimpleNamespace(value=value),
    )
    return [found.message for found in ResultCheck().after(view)]


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({}, 0),
        ({"pages": 0}, -EINVAL),
        ({"gpa": 0x1001}, -EINVAL),
        ({"gpa": 0xFFF}, -EINVAL),
        ({"pages": U64}, -EINVAL),
        ({"gpa": 0xF000}, 0),
        ({"cpl": 3}, -EPERM),
        ({"cpl": 3, "pages": 0}, -EPERM),
        ({"nr": 13}, -ENOSYS),
        ({"nr": JUNK | 12}, -ENOSYS),
        ({"nr": JUNK | 12, "gpa": JUNK | 0x1000, "pages": JUNK | 1, "is_64bit": False}, 0),
        ({"pages": JUNK, "is_64bit": False}, -EINVAL),
        ({"cpl": 1, "is_64bit": False}, -EPERM),
    ],
)
def test_the_one_answer_that_the_contract_demands(fields, right) -> None:
    assert answers(call(right, **fields)) == []
    for ret in {0, 1, -EINVAL, -EPERM, -ENOSYS} - {right}:
        (message,) = answers(call(ret, **fields))
        mask = U64 if fields.get("is_64bit", True) else U32
        assert f"was answered {ret & mask:#x}, expected {right & mask:#x}" in message


@pytest.mark.parametrize("nr", [1, 5, 9, 10, 11])
def test_what_kvm_answers_itself_is_open(nr) -> None:
    assert answers(call(7, nr=nr)) == []
    assert is_open(call(nr=nr))


def test_user_space_decides_about_a_range_that_leaves_ram() -> None:
    for ret in (0, -EINVAL, 5):
        assert answers(call(ret, gpa=0xF000, pages=2)) == []
        assert answers(call(ret, gpa=0x10000)) == []
        assert answers(call(ret, gpa=0x4000, pages=2), holes=((5, 7),)) == []
        assert answers(call(ret, gpa=0x6000, pages=2), holes=((5, 7),)) == []
        assert answers(call(ret, pages=U64 - 1)) == []
    for gpa in (0x3000, 0x7000):
        assert answers(call(gpa=gpa, pages=2), holes=((5, 7),)) == []
        assert answers(call(-EINVAL, gpa=gpa, pages=2), holes=((5, 7),)) != []
    assert not is_open(call(gpa=0x10000))
    assert not is_open(call())


def test_an_ordered_answer_is_passed_on_once() -> None:
    ordered, plain = call(5), call(0)
    assert answers(ordered, plain, injected=(5, 1)) == []
    assert answers(ordered, ordered, plain, injected=(5, 2)) == []
    assert answers(plain, injected=(5, 1)) != []
    assert answers(ordered, ordered, injected=(5, 1)) != []
    assert answers(call(-EINVAL, pages=0), ordered, injected=(5, 1)) == []
    assert answers_left(5, 3, (ordered, MSR, call(-EINVAL, pages=0), plain)) == 1
    assert Reference(5, 3).left == 3


def test_the_first_wrong_answer_is_named_and_others_are_passed_over() -> None:
    origin = MapGpaRangeExit(12, (0x1000, 1, 0, 0), 7, 0, origin=MEMORY_FAULT)
    request = MapGpaRangeExit(12, (0x1000, 1, 0, 0), 7, 0, origin="psc")
    assert answers(origin) == []
    assert len(answers(request)) == 1
    assert answers(call(None), RdmsrExit(12, (0x1000, 1), 7, 0)) == []
    (message,) = answers(call(), origin, call(7, cpl=2, gpa=0x3000), call(9))
    assert message.startswith("hypercall 0xc(0x3000, 0x1, 0x0, 0x0) at CPL 2 was answered 0x7")


def test_whose_answers_are_judged() -> None:
    assert answers(call(7)) != []
    assert answers(call(7), contract="") == []
    assert answers(call(7), has_failing_kernel=True) == []
    assert answers() == []


@pytest.mark.parametrize(
    ("kinds", "right"),
    [
        (
            (OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED),
            (0, -ENOMEM, -EBUSY, -EPERM, -EIO, None),
        ),
        ((OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED), (0, 1, None)),
        ((OpKind.READ,), (-ENOENT, -EBUSY, 2, -EINVAL, 0, 1, None)),
    ],
)
def test_what_a_conversion_returns(kinds, right) -> None:
    for kind in kinds:
        for value in (*right, *{0, 1, 2, -ENOENT, -EINVAL, -EBUSY}):
            found = answers(kind=kind, value=value)
            assert bool(found) is (value not in right), (kind, value)
            assert all(message.startswith(f"returned {value}") for message in found)
