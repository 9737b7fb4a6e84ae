# SPDX-License-Identifier: GPL-2.0-or-later
"""A program brought down to the exits that it made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage.lower import is_guest_only, lower
from guestemu.events.exits import AnsweredExit, HypercallExit, RdmsrExit, WrmsrExit
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Header, Program

SHARE = Op(OpKind.SET_MEMORY_DECRYPTED, (2, 0), Region.D, 3)
ANSWER = Op(OpKind.ANSWER, (7, 1))
NOTE = HypercallExit(12, (0x203000, 2, 0, 0), 0, 0, 0, True)
RAW = Op(OpKind.HYPERCALL, (12, 0x203000, 2, 0, 0))


class FakeProbe:
    """Sees what it is told to, and notes which operations it was asked for."""

    def __init__(self, seen: SimpleNamespace | None) -> None:
        self.seen = seen
        self.asked: tuple[Op, ...] = ()

    def try_look(self, ops: tuple[Op, ...], *, traced: bool) -> SimpleNamespace | None:
        assert traced
        self.asked = ops
        return self.seen


def look(
    *exits: tuple[AnsweredExit, ...], private: str = "1", is_ready: bool = False, sees: int = 1
) -> SimpleNamespace:
    return SimpleNamespace(
        exits=list(exits),
        private=bitarray(private),
        is_ready=is_ready,
        sightings=["wrong"] * sees,
    )


def lowered(ops: tuple[Op, ...], *exits: tuple[AnsweredExit, ...]) -> tuple[Op, ...] | None:
    found = lower(FakeProbe(look()), Program(Header(), ops), look(*exits))
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("op", "exits", "expected"),
    [
        (SHARE, (NOTE,), (RAW,)),
        (SHARE, (NOTE, NOTE), (RAW, RAW)),
        (SHARE, (), ()),
        (
            SHARE,
            (WrmsrExit(0x4B564D08, (1,), 0, 0, 0, True), RdmsrExit(0x4B564D08, (), 1, 0, 0, True)),
            (Op(OpKind.WRMSR, (0x4B564D08, 1)), Op(OpKind.RDMSR, (0x4B564D08,))),
        ),
    ],
)
def test_a_guest_operation_becomes_its_exits(
    op: Op, exits: tuple[AnsweredExit, ...], expected: tuple[Op, ...]
) -> None:
    assert lowered((ANSWER, op), (), exits) == (ANSWER, *expected)


def test_a_raw_call_at_a_page_gets_the_pages_address_and_keeps_its_posture() -> None:
    placed = Op(
        OpKind.HYPERCALL,
        (12, 0, 2, 0, 0),
        Region.D,
        3,
        has_page=True,
        vcpu=1,
        mode=Mode.PROT32,
        cpl=3,
        instruction=Instruction.VMCALL,
    )
    expected = Op(
        OpKind.HYPERCALL,
        (12, 0x203000, 2, 0, 0),
        vcpu=1,
        mode=Mode.PROT32,
        cpl=3,
        instruction=Instruction.VMCALL,
    )
    assert lowered((placed,), (NOTE,)) == (canonical_op(expected),)
    assert lowered((placed, SHARE), (), (NOTE,)) == (placed, RAW), "without an exit it stays"
    assert lowered((placed, SHARE), (NOTE, NOTE), ()) == (placed,), "nor with two"


def test_a_program_of_exits_has_no_form_below() -> None:
    assert lowered((RAW,), (NOTE,)) is None
    assert lowered((ANSWER, RAW), (), (NOTE,)) is None


@pytest.mark.parametrize(
    "kind",
    [
        *(OpKind.ANSWER, OpKind.FAIL_MSR, OpKind.HOST_RESET_BITMAP, OpKind.GUEST_ACCESS),
        *(OpKind.HYPERCALL, OpKind.WRMSR, OpKind.RDMSR),
    ],
)
def test_orders_and_raw_calls_stay_without_an_exit(kind: OpKind) -> None:
    op = canonical_op(Op(kind))
    assert lowered((op, SHARE), (), (NOTE,)) == (op, RAW)


def test_what_does_not_go_wrong_below_has_none() -> None:
    program = Program(Header(), (SHARE,))
    seen = look((NOTE,))
    for below in (
        None,
        look(sees=0),
        look(private="0"),
        look(is_ready=True),
    ):
        assert lower(FakeProbe(below), program, seen) is None
    probe = FakeProbe(look())
    assert lower(probe, program, seen) == ((RAW,), probe.seen)
    assert probe.asked == (RAW,)


def test_a_look_that_broke_off_and_one_of_many_exits_are_left_alone() -> None:
    assert lowered((SHARE, ANSWER), (NOTE,)) is None
    assert lowered((SHARE,), (NOTE,) * 1024) == (RAW,) * 1024
    assert lowered((SHARE,), (NOTE,) * 1025) is None


@pytest.mark.parametrize(
    ("check", "message", "expected"),
    [
        ("frames", "frame 3 was lost", True),
        ("progress", "it hangs", True),
        ("free-pages", "frame 3 is shared", True),
        ("frames", "frame 3 was lost for the host", False),
        ("frames", "lost for the host, and found", False),
        ("frames", "lost for the hosts", True),
        ("conversion", "page tables: frame 3", True),
        ("conversion", "alias mapping: frame 3", True),
        ("conversion", "page tables: frame 3 is private for the host", False),
        ("conversion", "host: frame 3", False),
        ("conversion", "the page tables", False),
    ],
)
def test_what_says_nothing_about_the_host(check: str, message: str, expected: bool) -> None:
    assert is_guest_only(check, message) is expected
