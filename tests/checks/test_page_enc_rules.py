# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_HC_PAGE_ENC_STATUS at its borders (K1-a to K2-d), and what small checks hand on, on views
written by hand."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import ClassVar

import pytest
from bitarray import bitarray

from guestemu.checks.base import Violation, demands, explanations, not_as_told
from guestemu.checks.check_set import CheckSet
from guestemu.checks.device import OOPS, DeviceCheck
from guestemu.checks.host_ioctls import HostIoctlCheck
from guestemu.checks.page_enc import NUMBERS, PageEncRecordCheck, PageEncResultCheck
from guestemu.checks.resources import ResourceCheck
from guestemu.events.devices import DeviceViolation
from guestemu.events.exits import HypercallExit, RdmsrExit
from guestemu.host.kvm.findings import FindingKind, ResourceFinding
from guestemu.host.marked_bits import MarkedBits
from guestemu.program.ops import Op, OpKind

FRAMES = 16
EINVAL, ENOMEM = 22, 12
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
LATER, FIRST = "page-enc-status", "page-enc-status-2019"


def call(ret, gpa=0x1000, pages=1, enc=0, nr=12, cpl=0, is_64bit=True) -> HypercallExit:
    mask = U64 if is_64bit else U32
    value = None if ret is None else ret & mask
    return HypercallExit(nr, (gpa, pages, enc, 0), value, 0, cpl, is_64bit)


def view(*exits, before="1" * FRAMES, after="1" * FRAMES, contract=LATER, frames=None):
    return SimpleNamespace(
        index=2,
        exits=list(exits),
        frames=frames,
        host_before=bitarray(before),
        host=SimpleNamespace(contract=contract, private_map=lambda: bitarray(after)),
    )


def answers(*exits, **fields) -> list[str]:
    return [found.message for found in PageEncResultCheck().after(view(*exits, **fields))]


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({}, (0,), (1, -1, -EINVAL, -ENOMEM)),
        ({"pages": 0}, (0,), (-EINVAL,)),
        ({"pages": 0, "gpa": 0x1001}, (0, -EINVAL), (-ENOMEM, 1)),
        ({"gpa": 0x1001}, (-EINVAL,), (0, -ENOMEM)),
        ({"pages": U64}, (-EINVAL,), (0,)),
        ({"pages": U64, "gpa": 0}, (0, -ENOMEM, -EINVAL), (-1,)),
        ({"gpa": (FRAMES - 1) << 12}, (0,), (-EINVAL, -ENOMEM)),
        ({"gpa": (FRAMES - 1) << 12, "pages": 2}, (0, -ENOMEM, -EINVAL), (-1, 1)),
        ({"cpl": 3}, (-1,), (0, -EINVAL)),
        ({"cpl": 3, "pages": 0}, (-1,), (0,)),
        ({"is_64bit": False}, (0,), (-EINVAL, 1)),
        ({"is_64bit": False, "nr": 1 << 32 | 12, "pages": 1 << 32 | 1}, (0,), (-EINVAL,)),
        ({"is_64bit": False, "gpa": 1 << 32 | 0x1001}, (-EINVAL,), (0,)),
        ({"nr": 1 << 32 | 12}, (0, 1, -EINVAL), ()),
        ({"nr": 11}, (0, 1, -EINVAL), ()),
    ],
)
def test_the_answers_that_the_patch_sets_meant(fields, right, wrong) -> None:
    assert not any(answers(call(ret, **fields)) for ret in right)
    for ret in wrong:
        (message,) = answers(call(ret, **fields))
        assert f"was answered {ret}, expected {' or '.join(map(str, right))}" in message


def test_which_call_is_the_status_hypercall() -> None:
    assert answers(call(1, nr=11), contract=FIRST)
    assert not answers(call(1, nr=12), contract=FIRST)
    assert not answers(call(1), contract="map-gpa-range")
    assert not answers()
    assert not answers(call(None), RdmsrExit(12, (0x1000, 1, 0), 1, 0))
    (message,) = answers(call(0), call(1, pages=3, enc=7), call(-1))
    assert "12 of gpa 0x1000, 0x3 pages, enc 0x7" in message


def recorded(after: str, *exits, **fields) -> list[str]:
    seen = view(*exits, after=after.ljust(FRAMES, "1"), **fields)
    return [found.message for found in PageEncRecordCheck().after(seen)]


def test_an_answered_range_is_recorded() -> None:
    for ret in (0, 1, -1):
        assert recorded("1001", call(ret, pages=2)) == []
        assert recorded("1011", call(ret, pages=2)) != []
    assert recorded("1111", call(-EINVAL, pages=2), call(0, pages=2, cpl=3)) == []
    assert recorded("1111", call(0, pages=2, nr=11)) == []
    assert recorded("1101", call(0, pages=2), call(0, enc=2)) == []
    assert recorded("1" * (FRAMES - 1) + "0", call(0, (FRAMES - 1) << 12, 5)) == []
    assert recorded("1111", call(0, FRAMES << 12, 5), call(0, pages=0)) == []
    assert recorded("1011", call(-1 & U32, is_64bit=False)) == []


def test_a_wrong_record_is_told_by_its_first_frame() -> None:
    (one,) = recorded("1101", call(-EINVAL))
    assert "GPA 0x2000 is recorded as shared, expected private (1 frame differs)" in one
    (two,) = recorded("1111", call(0, pages=2))
    assert "GPA 0x1000 is recorded as private, expected shared (2 frames differ)" in two


def test_the_record_is_judged_after_calls_of_a_patch_sets_host() -> None:
    assert recorded("0000") == []
    assert recorded("0000", call(0), contract="map-gpa-range") == []
    assert recorded("0000", call(0), frames=(1, 1)) == [], "the check of conversions does that"
    for kind in (PageEncRecordCheck, PageEncResultCheck):
        assert all(kind.applies(SimpleNamespace(contract=name)) for name in NUMBERS)
        assert not kind.applies(SimpleNamespace(contract="map-gpa-range"))


# ioctls of the patch sets -------------------------------------------------------------------------


def ioctl(kind: OpKind, *arguments: int, value: int | None = 0, before: str, after: str = ""):
    """What the check says of a host operation that made of the record `before` the one `after`."""
    maps = [bitarray(bits, endian="little") for bits in (before, after or before)]
    seen = SimpleNamespace(
        index=1,
        op=Op(kind, arguments),
        outcome=SimpleNamespace(value=value),
        host_before=maps[0],
        host=SimpleNamespace(private_map=lambda: maps[1]),
    )
    found = [one.message for one in HostIoctlCheck().after(seen)]
    assert maps[0] == bitarray(before), "as it was"
    return found


SET, LIST, GET = OpKind.HOST_SET_BITMAP, OpKind.HOST_SET_LIST, OpKind.HOST_GET_BITMAP


@pytest.mark.parametrize(
    ("kind", "arguments", "before", "after"),
    [
        (SET, (2, 3, 0b010, 0), "11111111", "11010111"),
        (SET, (2, 3, 0b11101, 0), "00000000", "00101000"),
        (SET, (6, 9, 0, 0), "11111111", "11111100"),
        (SET, (8, 9, 0, 0), "11111111", "11111111"),
        (SET, (99, 9, 0, 0), "11111111", "11111111"),
        (SET, (2, 0, 0, 0), "11111111", "11111111"),
        (SET, (2, 3, 0, 1), "00000000", "11111111"),
        (SET, (1, 66, 2, 0), "1" * 70, "1" + "01" + "0" * 62 + "01" + "1" * 3),
        (LIST, (1, 2, 2, 0), "00000000", "10011001"),
        (LIST, (1, 2, 1, 0), "00000000", "10011111"),
        (LIST, (7, 2, 3, 0), "00000000", "11111110"),
        (LIST, (8, 2, 3, 0), "00000000", "11111111"),
        (LIST, (1, 2, 2, 1), "00000000", "11111111"),
        (LIST, (1, 2, 1 << 32, 0), "00000000", "11111111"),
        (OpKind.HOST_RESET_BITMAP, (), "00110011", "11111111"),
        (OpKind.HOST_COMMIT_SLOT, (), "00110011", "00110011"),
        (OpKind.HOST_RESET_VCPU, (), "00110011", "00110011"),
        (OpKind.HOST_POISON_PAGE, (), "00110011", "00110011"),
    ],
)
def test_an_ioctl_makes_the_record_what_user_space_gave(kind, arguments, before, after) -> None:
    assert ioctl(kind, *arguments, before=before, after=after) == []
    other = bitarray(after)
    other.invert(len(other) - 1)
    assert ioctl(kind, *arguments, before=before, after=other.to01()) != []


def test_a_refused_ioctl_changes_nothing() -> None:
    for value in (-22, -1):
        assert ioctl(SET, 2, 3, 0, 0, value=value, before="11111111") == []
        assert ioctl(SET, 2, 3, 0, 0, value=value, before="11111111", after="11000111") != []
    assert ioctl(SET, 2, 3, 0, 0, value=1, before="11111111", after="11000111") == []
    assert ioctl(SET, 2, 3, 0, 0, value=None, before="11111111", after="0" * 8) == []
    assert ioctl(OpKind.HOST_GET_LIST, 2, 3, 0, 0, before="11111111", after="0" * 8) == []
    assert ioctl(OpKind.READ, 0, before="11111111", after="0" * 8) == []


def test_get_gives_the_record_and_leaves_what_is_behind_the_range() -> None:
    def get(shown: str, gfn: int = 2, pages: int = 4, filler: int = 0b0101_0101) -> list[str]:
        behind = "10" * 16
        bits = shown + behind[len(shown) :]
        value = int(bits[::-1], 2)
        return ioctl(GET, gfn, pages, filler, value=value, before="11010011", after="0" * 8)

    assert get("0100") == []
    assert get("010010") == []
    assert get("0101") == ["GET: bit 3 of the buffer is not the record: 1, expected 0"]
    assert get("1100") == ["GET: bit 0 of the buffer is not the record: 1, expected 0"]
    assert get("01000") == [
        "GET: bit 4 of the buffer behind the range was not left alone: 0, expected 1"
    ]
    assert get("010010" + "10" * 12 + "11") != []
    for beyond in ("1100", "1111", "1101"):
        assert get(beyond, gfn=6) == [], "beyond RAM only the host knows"
    assert get("0111", gfn=6) != []
    assert ioctl(GET, 2, 40, 0, value=1 << 33 | 0b010010, before="1101001100", after="0" * 10) != []


def test_a_bitmap_that_is_set_has_as_many_words_as_it_needs() -> None:
    for pages, after in ((64, "1" + "0" * 65), (65, "1" + "0" * 63 + "10")):
        assert ioctl(SET, 0, pages, 1, 0, before="0" * 66, after=after) == []


def test_ioctls_are_those_of_the_patch_sets_hosts() -> None:
    assert all(HostIoctlCheck.applies(SimpleNamespace(contract=name)) for name in NUMBERS)
    assert not HostIoctlCheck.applies(SimpleNamespace(contract="map-gpa-range"))


# What small checks hand on ------------------------------------------------------------------------


class Costly:
    """A host with findings."""

    def __init__(self) -> None:
        self.findings: tuple[ResourceFinding, ...] = ()

    def add(self, amount: int) -> None:
        found = ResourceFinding(FindingKind.OUT_OF_BOUNDS, amount, "a write", "K1-c")
        self.findings = (*self.findings, found)


def test_each_finding_of_a_host_is_told_once_in_a_program() -> None:
    check, host = ResourceCheck(), Costly()

    def told(index: int, host: object = host) -> list[str]:
        seen = SimpleNamespace(host=host, index=index)
        return [found.message for found in check.after(seen)]

    host.add(8)
    assert told(0) == ["out of bounds: 8 bytes: a write"]
    assert told(1) == []
    host.add(0)
    assert told(2) == ["out of bounds: a write"]
    assert len(told(0)) == 2, "of the next program"
    host.findings = ()
    host.add(4)
    assert told(3) == ["out of bounds: 4 bytes: a write"], "the host was reset"
    other = Costly()
    other.add(1)
    assert told(4, other) == ["out of bounds: 1 bytes: a write"]
    assert told(5, SimpleNamespace()) == []
    assert ResourceCheck.applies(other)
    assert not ResourceCheck.applies(SimpleNamespace())


def test_what_a_device_did_and_what_the_kernel_printed() -> None:
    event = DeviceViolation(rule="device-mapping", device="nvme", gpa=0, size=8, text="too late")
    seen = SimpleNamespace(
        index=1,
        emitted=[(0, call(0)), (0, event)],
        outcome=SimpleNamespace(warnings=("WARNING: x",)),
    )
    found = list(DeviceCheck().after(seen))
    assert [(one.check, one.op) for one in found] == [("device-mapping", 1), (OOPS, 1)]
    assert [one.message for one in found] == ["too late", "the kernel printed: WARNING: x"]


@pytest.mark.parametrize(
    ("told", "free", "after", "expected"),
    [
        ((), (), "11110000", None),
        ((), (), "11110001", "11110000"),
        ([(1, 3, False)], (), "10010000", None),
        ([(1, 3, False)], (), "11110000", "10010000"),
        ([(6, 99, True)], (), "11110011", None),
        ([(8, 99, True), (9, 10, True)], (), "11110000", None),
        ([(1, 3, False), (2, 4, True)], (), "10110000", None),
        ([(2, 4, True), (1, 3, False)], (), "10010000", None),
        ((), [(7, 8)], "11110001", None),
        ((), [(6, 7)], "11110011", "11110010"),
    ],
)
def test_a_map_is_the_one_before_with_what_was_told(told, free, after, expected) -> None:
    before = bitarray("11110000")
    found = not_as_told(bitarray(after), before, told, free)
    assert found == (None if expected is None else bitarray(expected))
    assert before == bitarray("11110000"), "as it was"


def test_what_a_check_demands_goes_with_one_that_is_derived_from_it() -> None:
    class Derived(DeviceCheck):
        demands: ClassVar = {"device-of-a-package": "A package may say more."}
        explanations: ClassVar = {"device-of-a-package": "What it means."}

    assert {"device-of-a-package", OOPS} <= demands().keys()
    assert {"device-of-a-package", OOPS} <= explanations().keys()
    assert Derived.applies(SimpleNamespace()), "to every host, unless it says otherwise"
    del Derived
    gc.collect()
    assert "device-of-a-package" not in demands(), "of this test only"


class Says:
    """A check of `kinds` that always says something."""

    def __init__(self, name: str, *kinds: OpKind) -> None:
        self.name = name
        self.kinds = frozenset(kinds) or None

    def after(self, view: object) -> list[Violation]:
        return [Violation(self.name, 0, "", "")]


def test_an_operation_asks_the_checks_of_its_kind_in_their_order() -> None:
    checks = CheckSet([Says("all"), Says("reads", OpKind.READ), Says("writes", OpKind.WRITE)])

    def asked(kind: OpKind) -> list[str]:
        return [found.check for found in checks.after(SimpleNamespace(op=Op(kind)))]

    for _ in range(2):
        assert asked(OpKind.READ) == ["all", "reads"]
        assert asked(OpKind.WRITE) == ["all", "writes"]
        assert asked(OpKind.UNMAP) == ["all"]
        checks.watch(Says("watches", OpKind.READ), Says("more"))
        assert asked(OpKind.READ) == ["all", "reads", "watches", "more"]
        assert asked(OpKind.UNMAP) == ["all", "more"]
        checks.watch()


def test_a_record_that_knows_where_it_was_written_is_judged_alike() -> None:
    """That of a large guest."""
    told = [(2, 5, False)]
    for written, is_right in (((2, 5), True), ((2, 4), False), ((3, 6), False), ((0, 0), False)):
        record = MarkedBits(96, endian="little")
        record.setall(1)
        record.begin()
        before = record.begin()
        record[slice(*written)] = False
        assert (not_as_told(record, before, told) is None) is is_right
