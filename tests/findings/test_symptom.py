# SPDX-License-Identifier: GPL-2.0-or-later
"""What a violation is named by, and which operations clear the host's code of suspicion."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.campaign.triage.rules import ACCEPTED, LATE_RULES, rule_of
from guestemu.campaign.triage.symptom import (
    MIXED,
    Symptom,
    failure_of,
    is_convincing,
    is_of_bits,
    is_of_whole_range,
    plain_message,
    situation_of,
    symptom_of,
)
from guestemu.checks.base import OpView, Violation
from guestemu.checks.results import CONTRACT, Reference
from guestemu.events.exits import AnsweredExit, HypercallExit, RdmsrExit, WrmsrExit
from guestemu.guest.base import CallOutcome
from guestemu.program.ops import Argument, Op, OpKind
from guestemu.program.values import BOUNDARIES

FRAMES = 32
U64 = (1 << 64) - 1
NOTIFY = Op(OpKind.HYPERCALL, (12, 0, 1, 0, 0))


def call(gpa=0x4000, pages=4, word=0, ret=0, nr=12, cpl=0, is_64bit=True) -> HypercallExit:
    return HypercallExit(nr, (gpa, pages, word, 0), ret & U64, 0, cpl, is_64bit)


def view(
    *exits: AnsweredExit,
    shared=(),
    ready: tuple[bool, bool] = (False, False),
    op: Op = NOTIFY,
    injected=(0, 0),
    contract: str = CONTRACT,
    open_frames=(),
) -> OpView:
    """All frames were private; `shared` are not any more."""
    after = bitarray("1") * FRAMES
    for frame in shared:
        after[frame] = 0
    host = SimpleNamespace(
        private_map=lambda: after,
        migration_ready=ready[1],
        contract=contract,
        open_frames=open_frames,
    )
    return OpView(
        index=0,
        op=op,
        outcome=CallOutcome(0, None),
        guest=None,
        host=host,
        exits=list(exits),
        flips=[],
        host_before=bitarray("1") * FRAMES,
        private_before=bitarray("1") * FRAMES,
        moved_before=0,
        frames=None,
        wants_private=False,
        region=None,
        ready_before=ready[0],
        injected=injected,
        free_frames=None,
    )


@pytest.mark.parametrize(
    ("exits", "shared", "ready", "convinces"),
    [
        ([call()], range(4, 8), (0, 0), True),
        ([call()], range(4, 7), (0, 0), False),
        ([call()], range(5, 8), (0, 0), False),
        ([call()], (), (0, 0), False),
        ([call(pages=0)], (), (0, 0), False),
        ([call(gpa=28 << 12)], range(28, 32), (0, 0), True),
        ([call(gpa=29 << 12)], range(29, 32), (0, 0), False),
        ([call(gpa=32 << 12)], (), (0, 0), False),
        ([call(gpa=1 << 40)], (), (0, 0), False),
        ([call(gpa=1 << 32 | 0x4000, is_64bit=False)], range(4, 8), (0, 0), True),
        ([call(gpa=1 << 32 | 0x4000)], range(4, 8), (0, 0), False),
        ([call(ret=-22)], (), (0, 0), True),
        ([call(ret=-22), call()], range(4, 8), (0, 0), True),
        ([call(gpa=30 << 12, ret=-22)], (), (0, 0), False),
        ([call(), call(gpa=0x10000)], range(4, 8), (0, 0), False),
        ([RdmsrExit(1, (), 1, 0)], (), (0, 0), True),
        ([RdmsrExit(1, (), 0, 0)], (), (0, 0), False),
        ([RdmsrExit(1, (), 0, 0)], (), (0, 1), False),
        ([RdmsrExit(1, (), None, 0)], (), (0, 0), True),
        ([WrmsrExit(1, (1,), 1, 0)], (), (0, 1), True),
        ([WrmsrExit(1, (0,), 0, 0)], (), (1, 0), True),
        ([WrmsrExit(1, (1,), 1, 0)], (), (1, 1), False),
        ([WrmsrExit(1, (0,), 0, 0)], (), (0, 0), False),
        ([WrmsrExit(1, (2,), None, 0)], (), (0, 0), True),
        ([], (), (0, 0), True),
    ],
)
def test_what_convinces(exits, shared, ready, convinces) -> None:
    """Only a change that could be seen, and was, shows that code works."""
    ready = tuple(map(bool, ready))
    assert is_convincing(view(*exits, shared=shared, ready=ready)) is convinces


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (call(), ACCEPTED),
        (call(cpl=3), "privilege"),
        (call(cpl=1, nr=11), "privilege"),
        (call(nr=11), "number"),
        (call(nr=13), "number"),
        (call(nr=12 | 1 << 32), "number"),
        (call(nr=12 | 1 << 32, is_64bit=False), ACCEPTED),
        (call(gpa=0x4001), "alignment"),
        (call(gpa=0x4800, pages=0), "alignment"),
        (call(gpa=1 << 32 | 0x4000, pages=1 << 32, is_64bit=False), "empty range"),
        (call(pages=0), "empty range"),
        (call(pages=U64), "wrap"),
        (call(pages=U64 - 4), ACCEPTED),
        (call(pages=U64 - 3), "wrap"),
    ],
)
def test_the_rule_that_decides(record, rule) -> None:
    assert rule_of(record) == rule
    assert (rule in LATE_RULES) == (rule not in {"privilege", "number"})
    assert situation_of([record, record]) == rule
    assert situation_of([record, RdmsrExit(1, (), 1, 0)]) == MIXED


def test_a_call_is_accepted_by_the_rules_where_the_contract_answers_0() -> None:
    """A refusal that `Reference` knows and `rule_of` does not would be a finding of an accepted
    call."""
    reference = Reference(0, 0)
    seen = set()
    for nr, gpa, pages, cpl, is_64bit in product(
        BOUNDARIES[Argument.HYPERCALL_NUMBER],
        BOUNDARIES[Argument.ADDRESS],
        BOUNDARIES[Argument.COUNT],
        (0, 3),
        (False, True),
    ):
        record = HypercallExit(nr, (gpa, pages, 0, 0), 0, 0, cpl, is_64bit)
        rule = rule_of(record)
        assert (reference.answer(record) == 0) == (rule == ACCEPTED), record
        seen.add(rule)
    assert seen == LATE_RULES | {"privilege", "number"}


def record_symptom(shared, **arguments) -> Symptom:
    violation = Violation("record", 0, "host: GPA 0x4000 is recorded as private")
    return symptom_of(view(call(**arguments), shared=shared), violation)


@pytest.mark.parametrize(
    ("shared", "effect"),
    [
        ((), "all of the range, 3"),
        ((4, 5), "the end of the range, 2"),
        ((6, 7), "the start of the range, 2"),
        ((4, 7), "the middle of the range, 2"),
        ((4, 5, 6), "the end of the range, 1"),
        ((4, 5, 6, 7, 9), "outside of the range, 1"),
        ((4, 5, 6, 9), "inside and outside of the range, 2"),
        ((4, 5, 6, 7, *range(10, 20)), "outside of the range, 3"),
    ],
)
def test_which_part_of_the_record_is_wrong(shared, effect) -> None:
    assert record_symptom(shared) == Symptom("hypercall: record", effect)


def test_the_status_that_was_asked_for_decides() -> None:
    assert record_symptom((4, 5), word=0x10).effect == "the start of the range, 2"


def test_frames_that_the_host_may_record_as_it_likes_are_never_wrong() -> None:
    seen = view(call(), shared=(5, 6), open_frames=((4, 5),))
    found = symptom_of(seen, Violation("record", 0, "host: GPA 0x7000 is recorded as private"))
    assert found.effect == "the end of the range, 1"


def test_a_register_that_was_cut_names_the_symptom() -> None:
    violation = Violation("results", 0, "was answered 0x0, expected 0xfffffffffffffc18")
    cut = call(nr=12 | 1 << 32)
    found = symptom_of(view(cut, shared=range(4, 8)), violation)
    assert found == Symptom("hypercall: upper bits of the number")
    assert is_of_bits(found.name)
    ordered = symptom_of(view(cut, shared=range(4, 8), injected=(5, 1)), violation)
    assert ordered.name == "hypercall: number, answer ordered"
    dropped = symptom_of(view(call(pages=1 << 32)), violation)
    assert (dropped.name, dropped.register) == ("hypercall: answer", "page count")
    assert not is_of_bits(dropped.name)
    other = symptom_of(view(RdmsrExit(12, (0x4000, 4, 0, 0), 0, 0)), violation)
    assert other.register == ""


def test_a_wrong_record_of_a_whole_range() -> None:
    assert is_of_whole_range(record_symptom(()))
    assert not is_of_whole_range(record_symptom((4, 5)))
    assert not is_of_whole_range(Symptom("hypercall: answer", "all of the range, 3"))


SOURCE = """import os

# def of nothing
class Host:
    def first(self):
        pass

    def second(self, x):

        # a comment
        y = x
        default = y
        raise ValueError(default)
        return 7
"""


def test_a_failure_is_named_by_its_line_in_its_function(tmp_path) -> None:
    path = tmp_path / "host.py"
    path.write_text(SOURCE)
    raised = failure_of(f"{path}:13: second raised ValueError: 17 is wrong")
    assert raised == "host-failed: second raised ValueError +3"
    assert failure_of(f"{path}:8: second raised ValueError: 1").endswith("ValueError +2")
    assert failure_of(f"{path}:2: top raised OSError: 1").endswith("OSError +2")
    assert failure_of(f"{path}:13: second returned 3, no int") == "host-failed: second returned"
    assert failure_of("it returned 0x17 and 0") == "host-failed: it returned # and 0"


def test_a_range_of_one_page_is_wrong_as_a_whole() -> None:
    assert record_symptom((), pages=1).effect == "all of the range, 1"


def test_a_call_that_a_rule_refuses_is_named_by_the_rule() -> None:
    violation = Violation("results", 0, "was answered 0x0, expected 0xffffffffffffffea")
    found = symptom_of(view(call(pages=0)), violation)
    assert found.name == "hypercall: empty range"
    assert symptom_of(view(call()), violation).name == "hypercall: answer"
    ordered = symptom_of(view(call(), injected=(5, 1)), violation)
    assert ordered.name == "hypercall: accepted, answer ordered"
    for other in (view(call(), call()), view(call(), contract="other")):
        assert symptom_of(other, violation).name == f"results: {plain_message(violation)}"
    status = Violation("status", 0, "host: GPA 0x4000 is private, expected shared")
    assert symptom_of(view(call()), status).name == "status: host: frame # is S, expected S"


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("frame 0x4 and 17", "frame # and #"),
        ("host: GPA 0x4000 is private", "host: frame # is private"),
        ("2 free frames, the first at GPA 0x4000", "# free frames, the first #"),
        ("inside the converted range [0x4000, 0x6000)", "inside the converted range [#, #)"),
        ("stored to GPA 0x4010, where there is no RAM", "stored to GPA #, where there is no RAM"),
        ("bitmap base GPA 0x4010 was believed", "bitmap base GPA # was believed"),
        ("returned 0", "returned 0"),
        ("returned -22", "returned -22"),
        ("answered 0xffffffffffffffea", "answered -22"),
        ("answered 0xffffffea", "answered -22"),
        ("answered 4294967274", "answered -22"),
        ("answered 0x0", "answered #"),
        ("answered 0xfffffffffffff000", "answered #"),
        ("answered 0xfffffffffffff001", "answered -4095"),
        ("hypercall 0xc(0x1, 0x2) at CPL 3", "hypercall #() at CPL #"),
        ("3 frames differ", "# frame differs"),
        ("in f+0x12", "in f"),
        ("running at g+0x5, looping in f+0x7", "looping in f"),
    ],
)
def test_a_message_without_what_varies(message, plain) -> None:
    assert plain_message(Violation("x", 0, message)) == plain


@pytest.mark.parametrize("value", ["0x10000000000000000", "0x100000000"])
def test_a_power_of_two_is_no_error(value) -> None:
    assert plain_message(Violation("x", 0, f"answered {value}")) == "answered #"


def test_minus_one_is_an_error() -> None:
    for value in ("0xffffffffffffffff", "0xffffffff"):
        assert plain_message(Violation("x", 0, f"answered {value}")) == "answered -1"
