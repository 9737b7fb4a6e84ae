# SPDX-License-Identifier: GPL-2.0-or-later
"""One finding or two: what is left of a case's suspicious code once the first finding has its own;
on searches whose ends are written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from bitarray import bitarray
from found import call

from guestemu.campaign.triage import identify as steps
from guestemu.campaign.triage.canonical import Suspect
from guestemu.campaign.triage.identify import Case, Finding
from guestemu.campaign.triage.probe import Look, Sighting
from guestemu.campaign.triage.symptom import RECORD, Symptom, of_bits
from guestemu.checks.base import Violation
from guestemu.program.ops import Op
from guestemu.program.program import Header

CALL, OTHER, PARTS = (call(0x2000, 6),), (call(0, 1),), (call(0, 1), call(0x1000, 1))
ALL, END, START = "all of the range, 1", "the end of the range, 1", "the start of the range, 1"


def seen(*spots: str, effect: str = "", name: str = RECORD) -> Sighting:
    return Sighting(Violation("record", 0, "", ""), Symptom(name, effect), "", frozenset(spots))


def finding(key: str, *spots: str, effect: str = START) -> Finding:
    violation = Violation("record", 0, "", "")
    return Finding(key, RECORD, CALL, violation, (violation,), (), frozenset(spots), effect)


class Dropped:
    """A search that keeps its programs."""

    def __init__(self, _probe: object, _suspect: Suspect) -> None:
        pass

    def drop(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return ops

    minimise = drop


# What else is behind a case -----------------------------------------------------------------------


class Ends:
    """Where the searches of a case end that shows the code a, b and c at the end of its range: the
    first finding, `other` beside it, `hidden` behind it, and that `alone`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.first: Finding | None = finding("first", "a")
        self.other: Finding | None = None
        self.hidden: Finding | None = None
        self.alone: Finding | None = None
        self.suspects: list[Suspect] = []
        self.wanted: list[frozenset[str]] = []
        for name, stands in (
            ("Canonical", Dropped),
            ("find_suspect", lambda _probe, look, _suspect: look.sightings[0]),
            ("_finding", self._find),
            ("_elsewhere", self._look_elsewhere),
            ("_by_its_code", lambda _probe, found: msgspec.structs.replace(found, key="by code")),
        ):
            monkeypatch.setattr(steps, name, stands)

    def _find(self, _probe: object, _ops: object, suspect: Suspect) -> Finding | None:
        self.suspects.append(suspect)
        return self.hidden if suspect.needed else self.first

    def _look_elsewhere(
        self, _probe: object, _start: object, _first: object, _near: object, *wanted: frozenset[str]
    ) -> Finding | None:
        self.wanted += wanted[:1]
        return self.alone if wanted else self.other

    def keys(self, effect: str = END, known: str = "", name: str = RECORD) -> list[str]:
        self.suspects.clear()
        self.wanted.clear()
        own = seen("a", "b", "c", effect=effect, name=name)
        probe = SimpleNamespace(
            header=Header(),
            suspicious=lambda one: one.spots,
            suspicious_beside=lambda _ops, one: one.spots,
            try_look=lambda _ops, traced: Look((own,) * traced, (), bitarray(1), is_ready=False),
        )
        return [found.key for found in steps._search(probe, Case(CALL, own), frozenset(known))]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(monkeypatch)


def test_a_case_of_the_extent_of_its_finding_is_that_one(ends: Ends) -> None:
    ends.other = ends.hidden = finding("another", "b")
    assert ends.keys(effect=START) == ["by code"]
    assert ends.wanted == []
    assert len(ends.suspects) == 1


def test_a_neighbour_without_its_code_is_another_finding(ends: Ends) -> None:
    assert ends.keys() == ["first"]
    ends.other = finding("other", "b")
    assert ends.keys() == ["first", "other"]


def test_code_that_no_finding_has_may_hide_one(ends: Ends) -> None:
    assert ends.keys() == ["first"]
    for other, known, left in (
        (None, "", "bc"),
        (None, "c", "b"),
        (finding("other", "b"), "", "c"),
    ):
        ends.other = other
        ends.keys(known=known)
        assert ends.suspects[-1].needed == frozenset(left)
        assert ends.suspects[-1].not_effect == START
    for known, other in (("bc", None), ("c", finding("other", "b"))):
        ends.other = other
        ends.keys(known=known)
        assert len(ends.suspects) == 1, "nothing is left"


def test_what_hides_is_a_finding_by_its_extent_or_by_a_neighbour(ends: Ends) -> None:
    ends.hidden = finding("hidden", "b", effect=END)
    assert ends.keys() == ["first", "hidden"]
    assert ends.wanted == [frozenset("bc")]
    ends.hidden = finding("hidden", "b", effect=ALL)
    assert ends.keys() == ["first"], "of one page the first is all"
    ends.alone = finding("alone", "b")
    for effect in (ALL, END):
        ends.hidden = finding("hidden", "b", effect=effect)
        assert ends.keys() == ["first", "alone"]
    ends.hidden = None
    assert ends.keys() == ["first"]


def test_a_case_in_which_no_search_ends(ends: Ends) -> None:
    ends.first = None
    assert ends.keys() == []


def test_of_a_cut_register_the_check_that_saw_it_counts(ends: Ends) -> None:
    for name, check in ((RECORD, ""), (of_bits("address").name, "record")):
        ends.keys(name=name)
        assert ends.suspects[0].check == check


# What a search makes of its program ---------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Op, ...], bool]]:
    """The programs that a finding was made of, each with whether all of a range has to be wrong:
    each but `PARTS` is asked for its two calls."""
    made: list[tuple[tuple[Op, ...], bool]] = []

    def find(_probe: object, look: tuple[Op, ...], suspect: Suspect) -> Sighting | None:
        made.append((look.exits, suspect.is_whole))
        return seen(*suspect.spots) if look.sightings else None

    monkeypatch.setattr(steps, "Canonical", Dropped)
    monkeypatch.setattr(steps, "narrow", lambda _probe, ops, suspect: (ops, suspect))
    monkeypatch.setattr(steps, "find_suspect", find)
    monkeypatch.setattr(steps, "_first_of_all", lambda _probe, _ops, _look, own: own)
    monkeypatch.setattr(steps, "_in_two_calls", lambda _probe, _case: PARTS)
    return made


def made_of(*spots: str, is_whole: bool = False, shows: bool = True) -> Finding | None:
    def look(ops: tuple[Op, ...]) -> Look:
        return Look((seen(*spots),) if shows else (), ops, bitarray(1), is_ready=False)

    probe = SimpleNamespace(
        header=Header(),
        look_again=look,
        fresh=lambda: SimpleNamespace(suspicious_beside=lambda _ops, one: one.spots),
        suspicious=lambda one: one.spots,
        code=SimpleNamespace(anchors=sorted, places=lambda found: tuple(sorted(found))),
    )
    suspect = Suspect(RECORD, frozenset(spots), (), is_whole=is_whole)
    return steps._finding(probe, OTHER, suspect)


def test_without_code_a_range_over_two_slots_is_two_calls(asked) -> None:
    found = made_of()
    assert found is not None
    assert found.ops == PARTS
    assert asked == [(OTHER, False), (PARTS, True)], "once"


def test_with_code_or_where_they_are_two_already_the_call_stays(asked) -> None:
    for spots, is_whole in ((("a",), False), ((), True), (("a",), True)):
        found = made_of(*spots, is_whole=is_whole)
        assert found is not None
        assert (found.ops, found.places) == (OTHER, spots)
    assert made_of(shows=False) is None
