# SPDX-License-Identifier: GPL-2.0-or-later
"""What neighbours of a program say about its finding: whether one defect shows in two ways, whether
another one hides behind the first; on looks that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from bitarray import bitarray
from found import call

from guestemu.campaign.triage import identify as steps
from guestemu.campaign.triage.canonical import Suspect, around
from guestemu.campaign.triage.identify import Case, Finding
from guestemu.campaign.triage.probe import Look, Sighting
from guestemu.campaign.triage.symptom import RECORD, Symptom
from guestemu.checks.base import Violation
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header

PAGE = 4096
READ = Op(OpKind.READ, (0,))
CALL = call(2 * PAGE, 6)
ANSWER = "hypercall: answer"
ALL, PART = "all of the range, 3", "the end of the range, 1"


def seen(
    *spots: str, op: int = 0, name: str = RECORD, effect: str = "", check: str = "record", text=""
) -> Sighting:
    found = Violation(check, op, text, "")
    return Sighting(found, Symptom(name, effect), "", frozenset(spots))


def look(*sightings: Sighting, answers: tuple[tuple[int, ...], ...] = ()) -> Look:
    exits = tuple(tuple(SimpleNamespace(ret=ret) for ret in each) for each in answers)
    return Look(sightings, exits, bitarray(1), is_ready=False)


class Near:
    """A probe whose runs are `looks`; what is not there shows nothing, or cannot run where
    `is_over`. `asked` are the programs in their order."""

    header = Header(host="/somewhere/vmm.py:Host")

    def __init__(self, looks: Callable[[tuple[Op, ...]], Look | None]) -> None:
        self.asked: list[tuple[Op, ...]] = []
        self.traced: list[bool] = []
        self.allows: Callable[[tuple[Op, ...]], bool] = lambda ops: True
        self._looks = looks

    def try_look(self, ops: tuple[Op, ...], traced: bool = False) -> Look | None:
        self.asked.append(ops)
        self.traced.append(traced)
        return self._looks(ops)

    look = try_look

    def suspicious(self, sighting: Sighting) -> frozenset[str]:
        return sighting.spots


def finding(ops: tuple[Op, ...], *spots: str, check: str = "record", name: str = RECORD) -> Finding:
    violation = Violation(check, len(ops) - 1, "", "")
    return Finding(f"{check}-x-1", name, ops, violation, (violation,), (), frozenset(spots), "")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Op, ...], Suspect]]:
    """The programs and suspects that a finding is made of; each has one finding."""
    made: list[tuple[tuple[Op, ...], Suspect]] = []

    def make(_probe: object, ops: tuple[Op, ...], suspect: Suspect) -> Finding:
        made.append((ops, suspect))
        return finding(ops, "made")

    monkeypatch.setattr(steps, "_finding", make)
    return made


# Extents ------------------------------------------------------------------------------------------


def test_of_one_page_the_first_is_all() -> None:
    one = "all of the range, 1"
    for effect in ("the end of the range, 1", "the start of the range, 1", one):
        assert steps._is_one_extent(one, effect)
        assert steps._is_one_extent(effect, one)
    two = "all of the range, 2"
    assert steps._is_one_extent(two, "the end of the range, 2")
    for first, second in (
        (two, one),
        (ALL, "the end of the range, 3"),
        ("the start of the range, 1", "the end of the range, 1"),
        (one, "the end of the range, 2"),
    ):
        assert not steps._is_one_extent(first, second)


# One defect behind two rules ----------------------------------------------------------------------


def by_code(
    ended: list, other: Look | None, *spots: str, check: str = "results", at=None, allows=None
) -> tuple[Finding, Near]:
    """What becomes of a finding of two operations with wrong answer 7, one neighbour of which shows
    `other`."""
    ops = (READ, CALL)
    neighbour = (READ, call(0, 6)) if at is None else at
    assert at is not None or neighbour in list(around(ops))
    own = look(seen(*spots, op=1, name="number", check=check), answers=((), (7,)))
    nothing = look(answers=((), (7,)))
    probe = Near(lambda ops_: own if ops_ == ops else other if ops_ == neighbour else nothing)
    if allows is not None:
        probe.allows = allows
    ended.clear()
    return steps._by_its_code(probe, finding(ops, *spots, check=check, name="number")), probe


def answer(*spots: str, op: int = 1, name: str = ANSWER, check: str = "results") -> Sighting:
    return seen(*spots, op=op, name=name, check=check)


def test_a_wrong_answer_is_that_of_a_simpler_call_with_all_of_its_code(ended) -> None:
    wrong = ((), (7,))
    for spots in (("x",), ("x", "y")):
        found, probe = by_code(ended, look(answer(*spots), answers=wrong), "x")
        assert found.ops == (READ, call(0, 6))
        assert [(ops, suspect.name, suspect.spots) for ops, suspect in ended] == [
            (found.ops, ANSWER, frozenset(spots))
        ]
        assert all(probe.traced)
    two = look(answer(name="number"), answer("x"), answers=wrong)
    assert by_code(ended, two, "x")[0].spots == {"made"}


@pytest.mark.parametrize(
    "other",
    [
        None,
        look(answer("y"), answers=((), (7,))),
        look(answer(), answers=((), (7,))),
        look(answer("x", name="number"), answers=((), (7,))),
        look(answer("x", op=0), answers=((), (7,))),
        look(answer("x", check="record"), answers=((), (7,))),
        look(answer("x"), answers=((), (8,))),
        look(answer("x"), answers=((), ())),
        look(answer("x"), answers=((),)),
    ],
)
def test_a_wrong_answer_stays_what_it_is(ended, other) -> None:
    found, _ = by_code(ended, other, "x")
    assert (found.ops, found.spots, ended) == ((READ, CALL), {"x"}, [])


def test_only_simpler_calls_of_as_many_operations_are_looked_at(ended) -> None:
    same = look(answer("x"), answers=((), (7,)))
    larger, fewer = (READ, call(2 * PAGE, 6, 16)), (CALL,)
    for other in (larger, fewer):
        assert other in list(around((READ, CALL)))
        found, probe = by_code(ended, same, "x", at=other)
        assert (found.spots, other in probe.asked) == ({"x"}, False)
    assert all(len(ops) == 2 for ops in probe.asked)
    assert by_code(ended, same, "x", allows=lambda ops: False)[0].spots == {"x"}
    for spots, check in (((), "results"), (("x",), "record")):
        found, probe = by_code(ended, same, *spots, check=check)
        assert (found.spots, probe.asked) == (frozenset(spots), [])


def test_a_neighbour_that_no_search_ends_in_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr(steps, "_finding", lambda *_: None)
    same = look(answer("x"), answers=((), (7,)))
    assert by_code([], same, "x")[0].spots == {"x"}


# Another defect that looks the same ---------------------------------------------------------------


def elsewhere(ended, sighting: Sighting | None, *first: str, wanted=(), inside=()) -> bool:
    """Whether a neighbour with `sighting` is another finding than one whose code is `first`."""
    near = (call(0, 1),)
    probe = Near(lambda ops: None if sighting is None else look(seen(name="x"), sighting))
    ended.clear()
    found = steps._elsewhere(
        probe, (CALL,), finding((CALL,), *first), [near], frozenset(wanted), frozenset(inside)
    )
    assert all(probe.traced)
    if found is not None:
        assert sighting is not None
        assert ended == [(near, Suspect(RECORD, sighting.spots, ()))]
    return found is not None


def test_a_neighbour_without_the_code_of_the_first_is_another_finding(ended) -> None:
    assert elsewhere(ended, seen("y"), "x")
    assert elsewhere(ended, seen(), "x")
    assert not elsewhere(ended, seen("x", "y"), "x")
    assert not elsewhere(ended, seen("y", name="other"), "x")
    assert not elsewhere(ended, None, "x")
    assert not elsewhere(ended, seen("y")), "the first has no code of its own"


def test_wanted_code_without_all_that_the_first_has_of_it(ended) -> None:
    assert elsewhere(ended, seen("w"), "x", wanted="w", inside="xw")
    assert elsewhere(ended, seen("w", "x"), "x", "y", wanted="w", inside="xyw")
    assert not elsewhere(ended, seen("w", "x"), "x", "y", wanted="w", inside="xw")
    assert not elsewhere(ended, seen("w", "x", "z"), "x", wanted="w", inside="xw")
    assert not elsewhere(ended, seen("y"), "x", wanted="w", inside="xw")
    assert not elsewhere(ended, seen("w"), "x", wanted="w"), "the first has none of that code"


def test_neighbours_that_a_campaign_would_not_run_are_passed_over(ended) -> None:
    probe = Near(lambda ops: look(seen("y")))
    probe.allows = lambda ops: ops == (READ,)
    found = steps._elsewhere(probe, (CALL,), finding((CALL,), "x"), [(CALL,), (READ,)])
    assert found is not None
    assert probe.asked == [(READ,)]


# Two calls in place of one ------------------------------------------------------------------------

WRONG = "host: GPA 0x5000 is recorded as private"
BOTH = (READ, call(2 * PAGE, 3), call(5 * PAGE, 3))


def in_two(op: Op = CALL, text: str = WRONG, name: str = RECORD, shows=None, runs=True):
    shown = seen(op=2, effect=ALL) if shows is None else shows
    probe = Near(lambda ops: look(shown) if runs else None)
    found = steps._in_two_calls(probe, Case((READ, op), seen(op=1, name=name, text=text)))
    assert all(probe.traced)
    assert probe.asked in ([], [BOTH], [found])
    return found


def test_a_range_becomes_two_calls_that_meet_where_it_is_wrong() -> None:
    assert in_two() == BOTH
    first, second = in_two(text="GPA 0x3000")[1:]
    assert (first, second) == (call(2 * PAGE, 1), call(3 * PAGE, 5))
    first, second = in_two(text="GPA 0x7000")[1:]
    assert (first, second) == (call(2 * PAGE, 5), call(7 * PAGE, 1))


@pytest.mark.parametrize(
    "what",
    [
        {"text": "GPA 0x2000"},
        {"text": "GPA 0x8000"},
        {"text": "GPA 0x1000"},
        {"text": "it is wrong"},
        {"name": ANSWER},
        {"op": READ},
        {"op": Op(OpKind.HYPERCALL, CALL.arguments, has_page=True)},
        {"shows": seen(op=1, effect=ALL)},
        {"shows": seen(op=3, effect=ALL)},
        {"shows": seen(op=2, effect=PART)},
        {"shows": seen("x", op=2, effect=ALL)},
        {"runs": False},
    ],
)
def test_a_range_stays_one_call(what) -> None:
    assert in_two(**what) is None


# Which sighting of one operation stands for it ----------------------------------------------------


def first_of(
    monkeypatch: pytest.MonkeyPatch, *sightings: Sighting, same=(), without=False
) -> Sighting:
    """Which of the sightings stands for the last. The programs of symptoms in `same` have the same
    canonical form; `without`: the last is seen without the others."""
    own = sightings[-1]

    class Smallest:
        def __init__(self, _probe: object, suspect: Suspect) -> None:
            self._name = suspect.name

        def minimise(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
            return ops if self._name in same else (READ,)

    monkeypatch.setattr(steps, "Canonical", Smallest)
    alone = look(own) if without else look(*sightings)
    return steps._first_of_all(Near(lambda ops: alone), (CALL,), look(*sightings), own)


def test_of_what_shows_in_one_program_the_first_stands_for_it(monkeypatch) -> None:
    one, own = seen(name="one"), seen(name="own")
    earlier = seen(name="earlier", op=1)
    assert first_of(monkeypatch, one, own, same=["one"]) is one
    assert first_of(monkeypatch, one, own) is own
    assert first_of(monkeypatch, one, own, same=["one"], without=True) is own
    assert first_of(monkeypatch, earlier, own, same=["earlier"]) is own, "of another operation"
    assert first_of(monkeypatch, earlier, one, own, same=["one"]) is one
    like = seen("x", name="own")
    assert first_of(monkeypatch, like, own, without=True) is like
    assert first_of(monkeypatch, own, own, same=["own"]) is own


def test_a_symptom_that_a_neighbour_shows_without_the_other(monkeypatch) -> None:
    one, own, third = (seen(name=name) for name in ("one", "own", "third"))
    asked = []

    def shown(*sightings: Sighting, runs: bool = True) -> bool:
        probe = Near(lambda ops: look(*sightings) if runs else None)
        found = steps._is_seen_without(probe, (CALL,), own, one)
        asked.append(len(probe.asked))
        return found

    assert shown(own)
    assert shown(third, own)
    assert not any((shown(own, one), shown(one), shown(third), shown(), shown(own, runs=False)))
    assert asked[0] == 1
    assert asked[-1] == len(list(around((CALL,))))


# Refused calls ------------------------------------------------------------------------------------


def test_the_record_of_a_call_that_was_refused_against_the_contract_is_no_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "lower", lambda *_: None)

    def cases(*sightings: Sighting, ret: int = 22, below: bool = False) -> list[str]:
        shown = look(*sightings, answers=((ret,),))
        if below:
            monkeypatch.setattr(steps, "lower", lambda *_: ((READ,), shown))
            first = look(seen(check="status", name="status"))
        found = steps.cases_of(Near(lambda ops: None), (CALL,), first if below else shown)
        return [case.sighting.symptom.name for case in found]

    refused = seen(check="results", name=ANSWER)
    for below in (False, True):
        assert cases(seen(), refused, below=below) == [ANSWER]
        assert cases(seen(), refused, ret=0, below=below) == [RECORD, ANSWER]
        assert cases(seen(name="other"), refused, below=below) == ["other", ANSWER]
        assert cases(seen(), below=below) == [RECORD], "the answer was right"
