# SPDX-License-Identifier: GPL-2.0-or-later
"""In which aspects two hosts' sides of one operation differ, on sides written by hand."""

from __future__ import annotations

import msgspec
from sides import FRAMES, call, side

from guestemu.program.ops import Op, OpKind
from guestemu.replay.lockstep.compare import Divergence, compare
from guestemu.replay.lockstep.known import ANSWER, END, READY, STATUS, VALUE
from guestemu.replay.lockstep.side import Side

HOST = "map-gpa-range"
SET = Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0))


def changed(one: Side, **fields: object) -> Side:
    """A side with other fields; what it had computed is not kept."""
    return msgspec.structs.replace(one, **fields)


def shared(one: Side, *frames: int) -> Side:
    """`one` with `frames` shared by the operation."""
    after = one.before.copy()
    for frame in frames:
        after[frame] = 0
    return changed(one, after=after)


def found(one: Side, other: Side) -> list[tuple[str, tuple[str, str]]]:
    differences = list(compare(3, one, other))
    assert all(isinstance(each, Divergence) and each.op == 3 for each in differences)
    return [(each.aspect, each.values) for each in differences]


def test_equal_sides_do_not_differ() -> None:
    assert found(side(HOST, call()), side(HOST, call())) == []


def test_answers_differ_by_the_first_that_does_or_by_their_number() -> None:
    one = side(HOST, call(), call(ret=0), call(ret=-22))
    other = side(HOST, call(), call(ret=-1), call(ret=0))
    assert found(one, other) == [(ANSWER, ("0 to exit 1", "-1 to exit 1"))]
    fewer = side(HOST, call())
    assert found(one, fewer) == [(ANSWER, ("3 hypercalls", "1 hypercalls"))]


def test_values_are_those_of_operations_that_ended_alike_and_are_no_hypercalls() -> None:
    one, other = side(HOST, op=SET, value=0), side(HOST, op=SET, value=-5)
    assert found(one, other) == [(VALUE, ("0", "-5"))]
    assert found(side(HOST, value=0), side(HOST, value=-5)) == [], "RAX is an answer"


def test_of_a_vm_that_stopped_only_the_end_is_compared() -> None:
    running = shared(side(HOST, call(), op=SET), 5)
    stopped = side(HOST, op=SET, value=-5, stopped=True)
    for one, other in ((running, stopped), (stopped, running)):
        ((aspect, values),) = found(one, other)
        assert aspect == END
        assert "vm-stopped" in values
        assert values[0] != values[1]


def test_frames_that_part_in_the_operation() -> None:
    one, other = side(HOST, call()), side(HOST, call())
    assert found(shared(one, 7), other) == [(STATUS, ("GPA 0x7000 shared", "GPA 0x7000 private"))]
    assert found(one, shared(other, 9, 7, FRAMES - 1)) == [
        (STATUS, ("GPA 0x7000 private and 2 more", "GPA 0x7000 shared and 2 more")),
    ]
    assert found(shared(one, 7, 8), other) == [
        (STATUS, ("GPA 0x7000 shared and 1 more", "GPA 0x7000 private and 1 more")),
    ]
    assert found(shared(one, 7), shared(other, 7)) == []
    apart = side(HOST, call(), shared=[7])
    assert found(apart, other) == [], "since an earlier operation"
    assert found(shared(apart, 7), shared(other, 7)) == [], "they agree again"
    assert found(shared(apart, 7, 8), other) == [
        (STATUS, ("GPA 0x8000 shared", "GPA 0x8000 private")),
    ]


def test_what_a_users_host_records_of_a_hole_is_its_own_business() -> None:
    one, other = side(HOST, call()), side(HOST, call())
    traits = msgspec.structs.replace(one.traits, is_users=True, open_frames=((7, 9),))
    users = changed(one, traits=traits)
    for frame, aspects in ((6, [STATUS]), (7, []), (8, []), (9, [STATUS])):
        assert [aspect for aspect, _ in found(shared(users, frame), other)] == aspects
        assert [aspect for aspect, _ in found(other, shared(users, frame))] == aspects
    built_in = changed(one, traits=msgspec.structs.replace(traits, is_users=False))
    assert [aspect for aspect, _ in found(shared(built_in, 7), other)] == [STATUS]


def test_readiness_that_parts_in_the_operation() -> None:
    off = side(HOST, call())
    on = changed(off, ready=True)
    words = {False: "migration not allowed", True: "migration allowed"}
    assert found(off, on) == [(READY, (words[False], words[True]))]
    assert found(on, off) == [(READY, (words[True], words[False]))]
    assert found(on, on) == []
    before = side(HOST, call(), ready_before=True)
    assert found(before, off) == [], "since an earlier operation"


def test_a_known_difference_explains_one() -> None:
    wide = {"nr": 12 | 1 << 32, "is_64bit": False}
    (known,) = compare(
        0, side("map-gpa-range:6.12", call(**wide, ret=-1)), side(HOST, call(**wide))
    )
    assert known.is_explained
    assert known.known == "lost-exit"
    assert known.fact
    assert known.reason
    assert known.hosts == ("map-gpa-range:6.12", HOST)
    (unknown,) = compare(0, side(HOST, call()), side(HOST, call(ret=-1)))
    assert not unknown.is_explained
    assert (unknown.known, unknown.fact, unknown.reason) == ("", "", "")
