# SPDX-License-Identifier: GPL-2.0-or-later
"""Which other values a probe tries to name a violation, and what they have to show; on runs that
are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest
from bitarray import bitarray
from found import call

from guestemu.abi.errors import EngineError, ProgramTimeError, TimeUp
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage import probe as probes
from guestemu.campaign.triage.hostcode import CodeTracedExits
from guestemu.campaign.triage.probe import Look, Probe, Sighting, with_pages
from guestemu.campaign.triage.symptom import RECORD, Symptom, of_bits
from guestemu.checks.base import Violation
from guestemu.host.native.host import NativeHost
from guestemu.host.userspace.base import VmStopped
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import HOST_FAILED

PAGE = 4096
READ = Op(OpKind.READ, (0,))
COUNT, ADDRESS = of_bits("page count"), of_bits("address")
PLAIN = Symptom(RECORD, "all of the range, 3")

Program = tuple[Op, ...]


def sighting(symptom: Symptom, *spots: str, op: int = 1, plain: Sighting | None = None) -> Sighting:
    return Sighting(Violation("record", op, "", ""), symptom, "", frozenset(spots), plain)


def look(*sightings: Sighting, answers: tuple[tuple[int, ...], ...] = ()) -> Look:
    exits = tuple(tuple(SimpleNamespace(ret=ret) for ret in each) for each in answers)
    return Look(sightings, exits, bitarray(1), is_ready=False)


class Tries(Probe):
    """A probe whose runs are `looks`; `asked` are the programs, in their order."""

    def __init__(self, looks: Callable[[Program], Look | None] = lambda ops: look()) -> None:
        guest = SimpleNamespace(name="snippet:6.1")
        super().__init__(SimpleNamespace(host=object(), checks=(1, 2), guest=guest), Header())
        self.asked: list[Program] = []
        self.traced: list[bool] = []
        self.comparing: list[bool] = []
        self._looks = looks

    def try_look(self, ops: Program, traced: bool = False) -> Look | None:
        self.asked.append(ops)
        self.traced.append(traced)
        self.comparing.append(self._is_comparing)
        return self._looks(ops)

    def _marks(self, op: Op, is_count: bool) -> Program:
        return (call(0, 77 if is_count else 88),)


# Lower bits ---------------------------------------------------------------------------------------


def tried(
    register: str, op: Op, shown: int | None = None
) -> tuple[list[tuple[int, ...]], Sighting]:
    """The addresses, counts and attributes that are tried, up to the `shown`-th, which shows it."""
    probe = Tries(lambda ops: look())
    cuts: list[tuple[int, ...]] = []

    def shows(ops: Program, named: Symptom) -> bool:
        assert ops[0] == ops[2] == READ
        assert len(ops) == 3
        assert named.name.endswith(register)
        cuts.append(ops[1].arguments[1:4])
        return len(cuts) == shown

    probe._shows_cut = shows
    seen = sighting(msgspec.structs.replace(PLAIN, register=register), "a")
    return cuts, probe._by_bits((READ, op, READ), seen)


def test_another_count_with_the_same_upper_bits_at_address_0() -> None:
    cuts, found = tried("page count", call(5 * PAGE, 0xABC_DEF, 17))
    assert cuts == [
        (0, upper | more, status)
        for more in (3, 70)
        for status in (1, 17, 0, 16)
        for upper in (0xAB0000, 0xABC000, 0xABCD00)
    ]
    assert found.symptom == PLAIN
    assert found.spots == {"a"}


def test_the_same_address_and_others_with_its_upper_bits() -> None:
    gpa = 0x123_4567_89AB_C001
    cuts, _ = tried("address", call(gpa, 2))
    uppers = (gpa & ~0xFFFF, gpa & ~0xFFFF_FFFF, gpa & ~0xFF_FFFF_FFFF)
    assert cuts == [
        *((gpa, 2, status) for status in (16, 0)),
        *(
            (upper | more * PAGE, 2, status)
            for more in (3, 70)
            for status in (16, 0)
            for upper in uppers
        ),
    ]


def test_the_first_that_shows_it_names_the_register() -> None:
    cuts, found = tried("page count", call(0, 1 << 32), shown=2)
    assert len(cuts) == 2
    assert found.symptom == COUNT
    assert found.spots == frozenset()
    assert tried("", call(0, 1)) == ([], sighting(PLAIN, "a"))


# Neighbours of a value that seems to be cut -------------------------------------------------------

CALL = call(1 << 40, 9)


def neighbours(
    symptom: Symptom, answer: Callable[[Program], Look | None], op: Op = CALL
) -> tuple[Sighting, list[Program]]:
    plain = sighting(PLAIN)
    probe = Tries(answer)
    found = probe._by_neighbour((READ, op, READ), sighting(symptom, plain=plain))
    assert found.symptom in (symptom, PLAIN)
    assert all(probe.comparing)
    assert not probe._is_comparing
    return found, probe.asked


def test_which_neighbours_are_asked_first_with_marks_then_without() -> None:
    for symptom, near, mark in (
        (COUNT, [call(1 << 40, 10), call(1 << 40, 8)], call(0, 77)),
        (
            ADDRESS,
            [
                *(call((1 << 40) + by, 9) for by in (PAGE, -PAGE)),
                *(call((1 << 40) + by, 1) for by in (PAGE, -PAGE)),
            ],
            call(0, 88),
        ),
    ):
        for answer in (lambda ops: None, lambda ops: look(answers=((), (22,), (22,)))):
            found, asked = neighbours(symptom, answer)
            assert found.symptom == PLAIN
            assert asked == [
                *((READ, mark, one, READ) for one in near),
                *((READ, one, READ) for one in near),
            ]


def test_a_cut_that_a_neighbour_shows_stays() -> None:
    for number in (3, 4):  # operations: without marks or with
        shown = lambda ops, number=number: (  # noqa: E731
            look(sighting(COUNT, op=number - 2)) if len(ops) == number else None
        )
        assert neighbours(COUNT, shown)[0].symptom == COUNT
    elsewhere = look(sighting(COUNT, op=0), sighting(COUNT, op=3), sighting(PLAIN, op=3))
    assert neighbours(COUNT, lambda ops: elsewhere)[0].symptom == PLAIN


def test_a_neighbour_that_is_wrong_in_another_way_speaks_against_the_cut() -> None:
    found, asked = neighbours(COUNT, lambda ops: look(sighting(PLAIN, op=len(ops) - 2)))
    assert found.symptom == PLAIN
    assert len(asked) == 1
    may_be = sighting(msgspec.structs.replace(PLAIN, register="page count"), op=2)
    found, asked = neighbours(COUNT, lambda ops: look(may_be) if len(ops) == 4 else None)
    assert len(asked) == 4, "that may be the cut of another register"


def test_neighbours_that_are_right_speak_against_the_cut() -> None:
    for answers, runs in (
        (((), (22,), (0,)), 2),
        (((), (0,), (22,)), 4),
        (((), (22,), (0, 22)), 2),
        (((), (0,)), 4),
        (((), (22,), (22,), (0,)), 4),
    ):
        found, asked = neighbours(
            COUNT, lambda ops, answers=answers: look(answers=answers) if len(ops) == 4 else None
        )
        assert found.symptom == PLAIN
        assert len(asked) == runs


def test_other_symptoms_have_no_neighbours() -> None:
    for symptom in (PLAIN, of_bits("number")):
        assert neighbours(symptom, lambda ops: None)[1] == []
    probe = Tries()
    bare = sighting(COUNT)
    assert probe._by_neighbour((READ, CALL), bare) is bare


def test_a_cut_has_to_show_in_a_neighbour_of_the_other_value_too() -> None:
    cut = sighting(COUNT, plain=sighting(PLAIN))
    ops = (READ, CALL)
    for near, is_cut in ((look(sighting(COUNT, op=2)), True), (None, False)):
        looks = lambda asked, near=near: look(cut) if asked == ops else near  # noqa: E731
        assert Tries(looks)._shows_cut(ops, COUNT) is is_cut
    assert not Tries(lambda asked: look(sighting(PLAIN)))._shows_cut(ops, COUNT)
    assert not Tries(lambda asked: None)._shows_cut(ops, COUNT)


# The status from other bits -----------------------------------------------------------------------

WORD = call(PAGE, 2, 0x105)


def by_attributes(op: Op, *shown: bool, symptom: Symptom = PLAIN) -> tuple[bool, list[Program]]:
    """Whether the code that ran is not to blame, where the programs that are tried show the
    symptom or not."""
    probe, asked = Tries(), []

    def shows(ops: Program, wanted: Symptom) -> bool:
        asked.append(ops)
        assert wanted == symptom
        return shown[len(asked) - 1]

    probe._shows = shows
    found = probe._by_attributes((READ, op, READ), sighting(symptom, "a"))
    return not found.spots, asked


def test_a_status_from_other_bits_runs_code_that_is_not_to_blame() -> None:
    plain, opposite = call(PAGE, 2, 0), call(PAGE, 2, 0x115)
    assert by_attributes(WORD, True, False, False) == (
        True,
        [(READ, plain, WORD), (READ, plain), (READ, opposite)],
    )
    private = call(PAGE, 2, 0x115)
    assert by_attributes(private, True, False, False)[1] == [
        (READ, call(PAGE, 2, 16), private),
        (READ, call(PAGE, 2, 16)),
        (READ, WORD),
    ]
    for shown in ((False, False, False), (True, True, False), (True, False, True)):
        assert not by_attributes(WORD, *shown)[0]


def test_without_other_bits_or_a_whole_range_the_code_is_suspected() -> None:
    part = Symptom(RECORD, "the end of the range, 1")
    for op, symptom in ((call(PAGE, 2, 16), PLAIN), (READ, PLAIN), (WORD, part)):
        assert by_attributes(op, True, False, False, symptom=symptom) == (False, [])
    none = sighting(PLAIN)
    assert Tries()._by_attributes((READ, WORD), none) is none


# The end of a range -------------------------------------------------------------------------------


def by_end(op: Op, *recorded: bool | None, symptom: Symptom = PLAIN) -> tuple[str, list[Op]]:
    probe, asked = Tries(), []

    def is_recorded(one: Op) -> bool | None:
        asked.append(one)
        return recorded[len(asked) - 1] if len(asked) <= len(recorded) else True

    probe._is_recorded = is_recorded
    found = probe._by_end((READ, op), sighting(symptom, "a"))
    assert (found.spots == set()) == (found.symptom != symptom)
    return found.symptom.name.rpartition(" the ")[2], asked


@pytest.mark.parametrize("bits", [31, 32, 44, 48, 52])
def test_the_longest_count_that_fits_is_right_from_address_0_only(bits: int) -> None:
    most = (1 << bits) - 1
    calls = [call(PAGE, most), call(0, most), call(PAGE, most - 1)]
    for symptom in (PLAIN, COUNT):
        for op in (call(PAGE, most), call(9 * PAGE, most - 8), call(0, most + 1)):
            wider = sum(width < bits for width in (31, 32, 44, 48, 52))
            found, asked = by_end(op, *[True] * wider, False, True, True, symptom=symptom)
            assert found == "range"
            assert asked[wider:] == calls
    assert all(one.arguments[2] != most for one in by_end(call(0, most))[1])


def test_where_another_call_is_wrong_as_well_or_cannot_run_it_is_no_end() -> None:
    op = call(PAGE, (1 << 31) - 1)
    for recorded in ((True,), (None,), (False, False), (False, True, False), (False, None)):
        assert by_end(op, *recorded)[0] == RECORD
    paged = msgspec.structs.replace(op, has_page=True)
    others = (READ, paged, call(PAGE, (1 << 64) - 1), call(0, 5))
    for other in others:
        assert by_end(other) == (RECORD, [])
    assert by_end(op, symptom=ADDRESS)[1] == []
    narrow = msgspec.structs.replace(call(PAGE, (1 << 40) | 5), mode=Mode.PROT32)
    assert by_end(narrow)[1] == [], "32-bit code has no upper half"


# Upper halves of 32-bit code ----------------------------------------------------------------------

HIGH = msgspec.structs.replace(call(1 << 32 | PAGE, 3), mode=Mode.PROT32)
LOW = msgspec.structs.replace(HIGH, arguments=call(PAGE, 3).arguments)


def by_half(looks: Look | None, *spots: str, op: Op = HIGH, is_64bit: bool = False) -> bool:
    """Whether upper halves are to blame for a violation with this code, if the call without them
    shows `looks`."""
    probe = Tries(lambda ops: looks)
    probe._cover = {"number": frozenset()}
    record = SimpleNamespace(is_64bit=is_64bit)
    own = msgspec.structs.replace(sighting(PLAIN, *spots), situation="alignment")
    found = probe._by_half((READ, op, READ), own, [[], [record], []])
    assert probe.asked in ([], [(READ, LOW, READ)])
    assert probe.traced == [bool(spots)] * len(probe.asked)
    assert all(probe.comparing)
    assert not probe._is_comparing
    if found is own:
        return False
    assert found.symptom == Symptom("hypercall: upper halves of arguments", PLAIN.effect)
    return True


def test_what_is_gone_without_the_upper_halves_is_their_doing() -> None:
    def other(*spots: str, symptom: Symptom = PLAIN, op: int = 1, plain=None) -> Look:
        found = sighting(symptom, *spots, op=op, plain=plain)
        return look(msgspec.structs.replace(found, situation="alignment"))

    assert by_half(look())
    assert by_half(other(symptom=ADDRESS))
    assert by_half(other(op=0))
    assert by_half(other("a", "b"), "a"), "they have code of their own"
    assert not by_half(other("a"), "a", "b")
    assert not by_half(other("a"), "a")
    assert not by_half(other())
    assert not by_half(other(symptom=ADDRESS, plain=sighting(PLAIN)))
    assert not by_half(None), "it cannot run"
    assert not by_half(look(), is_64bit=True)
    assert not by_half(look(), op=LOW)
    assert not by_half(look(), op=READ)


def test_a_run_that_is_compared_is_not_named_and_the_next_one_is() -> None:
    probe = Tries()
    assert not probe._is_comparing
    probe._compare((READ,))
    assert (probe.comparing, probe._is_comparing) == ([True], False)
    assert with_pages(CALL, 3) == call(1 << 40, 3)


# One run ------------------------------------------------------------------------------------------

BY_HOST = Op(OpKind.HOST_RESET_BITMAP, ())


class Native(NativeHost):
    """A host in C that counts how often it is begun anew."""

    def __init__(self) -> None:
        self.renewed = 0

    def renew(self) -> None:
        self.renewed += 1


class Bed:
    """A testbed that notes what is done; each step raises `error` if there is one."""

    def __init__(self, error: Exception | None = None, handler: object = "handler") -> None:
        self.host: object = object()
        self.checks = (1, 2)
        self.hooks = SimpleNamespace(handler=handler, clear=lambda: self.done.append("clear"))
        machine = SimpleNamespace(hooks=self.hooks)
        self.guest = SimpleNamespace(name="snippet:6.1", machine=machine)
        self.done: list[str] = []
        self.may_run = True
        self.handlers: list[object] = []
        self._error = error

    def try_out(self, ops: Program, is_new: bool) -> bool:
        self.done.append(f"try {len(ops)} {is_new}")
        return self.may_run

    def reset(self) -> None:
        self.done.append("reset")

    def step(self, index: int, op: Op, _ordered: object, _violations: list[Violation]) -> None:
        self.done.append(f"step {index}")
        self.handlers.append(self.hooks.handler)
        if self._error is not None:
            raise self._error


def stepped(bed: Bed, traced: bool, *ops: Op) -> list[str]:
    """What is done for `ops`, with the calls of the trace among it."""
    probe = Probe(bed, Header())
    probe.code = SimpleNamespace(
        **{name: lambda name=name: bed.done.append(name) for name in ("take", "start", "stop")}
    )
    probe._step_through(ops, [], traced)
    return bed.done


def test_host_code_is_traced_in_operations_of_the_host_and_behind_exits() -> None:
    bed = Bed()
    assert stepped(bed, True, READ, BY_HOST) == [
        *("try 2 True", "reset", "take", "step 0", "start", "step 1", "stop")
    ]
    assert all(isinstance(one, CodeTracedExits) for one in bed.handlers)
    assert bed.hooks.handler == "handler"
    bed = Bed()
    assert stepped(bed, False, READ, BY_HOST) == ["try 2 True", "reset", "step 0", "step 1", "stop"]
    assert bed.handlers == ["handler"] * 2
    assert stepped(Bed(handler=None), True, READ) == ["try 1 True", "reset", "step 0", "stop"]


def test_a_vm_that_stops_or_takes_too_long_leaves_no_hooks() -> None:
    ends = ["try 2 True", "reset", "step 0", "clear", "stop"]
    bed = Bed(VmStopped("gone"))
    assert stepped(bed, False, READ, READ) == ends
    bed = Bed(TimeUp("too long"))
    with pytest.raises(ProgramTimeError, match="too long"):
        stepped(bed, False, READ, READ)
    assert bed.done == ends
    bed.may_run = False
    with pytest.raises(EngineError, match="died"):
        stepped(bed, False, READ)


def test_a_host_that_fails_before_an_operation_begins_is_seen(monkeypatch) -> None:
    monkeypatch.setattr(probes, "belief_of", lambda host: (bitarray(1), False))
    bed = Bed()
    bed.observe = None
    bed.host = Native()
    probe = Probe(bed, Header())
    assert not probe.sees_code
    found = Violation(HOST_FAILED, 0, "vmm.py:3: reset raised KeyError", "")
    probe._step_through = lambda ops, violations, traced: violations.append(found)
    look_ = probe.look((READ,))
    assert [(one.violation, one.symptom.name) for one in look_.sightings] == [
        (found, f"{HOST_FAILED}: reset raised KeyError +3")
    ]
    assert bed.host.renewed == 1
    bound = SimpleNamespace(renew=lambda: None, rest=lambda: None, is_up=True, text="too long")
    probe.bound = bound
    assert probe.look((READ,)).sightings, "it is the host that took the time"
    probe._step_through = lambda ops, violations, traced: violations.append(
        msgspec.structs.replace(found, check="record")
    )
    with pytest.raises(ProgramTimeError):
        probe.look((READ,))
