# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps from a sighting to a finding, on probes that are written by hand: the short program of a
host that failed, and the one page in place of a range where no code can be suspected."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from bitarray import bitarray
from found import call

from guestemu.campaign.triage import identify as identification
from guestemu.campaign.triage.identify import Case, Finding, as_it_is, identify
from guestemu.campaign.triage.probe import Look, Sighting
from guestemu.campaign.triage.symptom import RECORD, Symptom, of_bits
from guestemu.checks.base import Violation
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import HOST_FAILED

READ, UNMAP = Op(OpKind.READ, (0,)), Op(OpKind.UNMAP)
BEFORE, BEHIND = call(0, 1), call(0, 2)
RAISES = "raises KeyError"


def sighting(op: int, name: str = RAISES) -> Sighting:
    return Sighting(Violation(HOST_FAILED, op, name, ""), Symptom(name), "", frozenset())


class Tried:
    """A probe of a host that goes wrong at the last operation of the programs that `fails` names;
    all programs show something else as well. `programs` are those that were tried."""

    header = Header(host="/somewhere/vmm.py:Host")
    sees_code = True

    def __init__(
        self,
        fails: Callable[[tuple[Op, ...]], bool],
        make: Callable[..., Sighting] = sighting,
        is_over: bool = False,
    ) -> None:
        self.programs: list[tuple[Op, ...]] = []
        self.traced: list[bool] = []
        self.most: list[int] = []
        self._fails = fails
        self._make = make
        self._is_over = is_over

    def shorten(self, runs: int) -> None:
        self.most.append(runs)

    def try_look(self, ops: tuple[Op, ...], traced: bool = False) -> Look | None:
        if self._is_over:
            return None
        self.programs.append(ops)
        self.traced.append(traced)
        last = len(ops) - 1
        seen = [self._make(last, "something else")]
        if self._fails(ops):
            seen.append(self._make(last))
        return Look(tuple(seen), (), bitarray(1), is_ready=False)

    def finding(self, *ops: Op, at: int) -> Finding:
        (found,) = identify(self, Case(ops, sighting(at)))
        assert found.symptom == RAISES
        return found


def test_operations_that_are_not_needed_go() -> None:
    given = (BEFORE, UNMAP, READ)
    for needed in ((READ,), (UNMAP,), (BEFORE,), (UNMAP, READ), (BEFORE, READ), given):
        tried = Tried(lambda ops, needed=needed: set(needed) <= set(ops))
        found = tried.finding(BEFORE, UNMAP, READ, BEHIND, at=2)
        assert found.ops == needed
        assert found.violation.op == len(needed) - 1
        assert not any(BEHIND in ops for ops in tried.programs), "it was never reached"
        assert () not in tried.programs
        assert all(len(ops) <= len(given) for ops in tried.programs)
        assert tried.most == [16], "tries"


def test_an_operation_that_another_one_needs_goes_after_that_one() -> None:
    tried = Tried(lambda ops: READ in ops and (UNMAP in ops or BEFORE not in ops))
    assert tried.finding(BEFORE, UNMAP, READ, at=2).ops == (READ,)


def test_arguments_that_are_not_needed_are_as_by_default() -> None:
    first = call(0x1000, 3, 16, cpl=3)
    assert Tried(lambda ops: ops[-1].arguments[2] == 3).finding(first, at=0).ops == (call(0, 3),)
    assert Tried(lambda ops: ops[-1].cpl == 3).finding(first, at=0).ops == (call(0, 0, cpl=3),)
    both = Tried(lambda ops: len(ops) == 2 and ops[-1].arguments[2] == 3)
    assert both.finding(first, first, at=1).ops == (call(0, 0), call(0, 3))


def test_a_program_stays_where_the_failure_does_not_show_again() -> None:
    ops = (BEFORE, UNMAP, READ)
    for tried in (Tried(lambda ops: True, is_over=True), Tried(lambda ops: False)):
        assert tried.finding(*ops, BEHIND, at=2).ops == ops
        assert len(set(tried.programs)) == len(tried.programs), "none is tried twice"


def test_the_key_names_the_check_the_operation_and_no_directory() -> None:
    key = Tried(lambda ops: False).finding(READ, at=0).key
    assert key.startswith(f"{HOST_FAILED}-read-")
    elsewhere = Tried(lambda ops: False)
    elsewhere.header = Header(host="/elsewhere/vmm.py:Host")
    assert elsewhere.finding(BEFORE, READ, at=1).key == key, "named by how and where"


# One page in place of a range ---------------------------------------------------------------------

PAGE = 4096
RANGE = call(2 * PAGE, 6)
MESSAGE = "host: GPA 0x4000 is recorded as private, which no answered notification says"


def recorded(op: int, symptom: str = RECORD, message: str = MESSAGE) -> Sighting:
    return Sighting(Violation("record", op, message, ""), Symptom(symptom), "", frozenset())


@pytest.fixture
def one_page(monkeypatch):
    """The program that `identify` searches from, and what was tried: a range in `RANGE`'s place."""

    def search(probe, case, known):
        return [as_it_is(probe, case.ops, case.sighting)]

    def of(fails, *ops: Op, symptom=RECORD, seen=RECORD, message=MESSAGE, sees_code=False):
        tried = Tried(fails, lambda op, name=seen: recorded(op, name))
        tried.sees_code = sees_code
        (found,) = identify(tried, Case(ops, recorded(len(ops) - 1, symptom, message)))
        assert all(tried.traced)
        return found.ops, tried.programs

    monkeypatch.setattr(identification, "_search", search)
    return of


def test_a_range_becomes_the_page_that_is_recorded_wrong(one_page) -> None:
    begin, wrong, end = (call(frame * PAGE, 1) for frame in (2, 4, 7))
    for page in (begin, wrong, end):
        assert one_page(lambda ops, page=page: ops == (page,), BEFORE, RANGE)[0] == (page,)
        with_others = one_page(lambda ops, page=page: ops == (BEFORE, page), BEFORE, RANGE)[0]
        assert with_others == (BEFORE, page)
    found, programs = one_page(lambda ops: False, BEFORE, RANGE)
    assert found == (BEFORE, RANGE)
    assert programs == [one for page in (begin, wrong, end) for one in ((page,), (BEFORE, page))], (
        "as it is where no page shows it alone"
    )


def test_a_case_in_which_no_search_ends_stands_as_it_is(monkeypatch) -> None:
    case, tried = Case((BEFORE, READ), recorded(1)), Tried(lambda ops: False)
    for ends in ([], [as_it_is(tried, (READ,), recorded(0))]):
        monkeypatch.setattr(identification, "_search", lambda *_case, ends=ends: ends)
        (found,) = identify(tried, case)
        assert found.ops == ((READ,) if ends else case.ops)


def test_what_one_page_has_to_show(one_page) -> None:
    cut = of_bits("page count").name
    assert one_page(lambda ops: True, RANGE, seen=cut)[0] == (call(2 * PAGE, 1),)
    assert one_page(lambda ops: True, RANGE, seen="hypercall: alignment")[0] == (RANGE,)


def test_a_range_stays_where_there_is_no_page_to_look_for(one_page) -> None:
    page = msgspec.structs.replace(RANGE, has_page=True)
    for ops, fields in (
        ((RANGE,), {"sees_code": True}),
        ((RANGE,), {"symptom": of_bits("page count").name}),
        ((RANGE,), {"message": "host: it is recorded as private"}),
        ((call(2 * PAGE, 1),), {}),
        ((call(2 * PAGE, 0),), {}),
        ((page,), {}),
        ((READ,), {}),
    ):
        assert one_page(lambda ops: True, *ops, **fields) == (ops, [])
    assert one_page(lambda ops: True, call(2 * PAGE, 2))[0] == (call(2 * PAGE, 1),)


# Cases of one run ---------------------------------------------------------------------------------

GUEST_ONLY = Sighting(Violation("frames", 0, "moved", ""), Symptom("frames"), "", frozenset())
RAW = (call(4 * PAGE, 1),)


def look(*sightings: Sighting) -> Look:
    return Look(sightings, (), bitarray(1), is_ready=False)


def cases(monkeypatch, seen: Look, below: Look | None) -> list[tuple[tuple[Op, ...], str]]:
    """The cases of a run of `RANGE` that showed `seen`, whose raw exits show `below`."""
    asked = []

    def lower(probe, program, found):
        asked.append(program.ops)
        return None if below is None else (RAW, below)

    monkeypatch.setattr(identification, "lower", lower)
    probe = Tried(lambda ops: False)
    probe.suspicious = lambda one: one.spots
    found = identification.cases_of(probe, (RANGE,), seen)
    is_hosts = any(one is not GUEST_ONLY for one in seen.sightings)
    assert asked == [(RANGE,)] * is_hosts, "defects of the guest show in no raw exit"
    return [(case.ops, case.sighting.symptom.name) for case in found]


def test_errors_of_the_host_are_brought_down_to_raw_exits(monkeypatch) -> None:
    here, there = look(recorded(0), GUEST_ONLY), look(recorded(0, "below"))
    assert cases(monkeypatch, here, there) == [((RANGE,), "frames"), (RAW, "below")]
    assert cases(monkeypatch, here, None) == [((RANGE,), RECORD), ((RANGE,), "frames")]
    assert cases(monkeypatch, look(GUEST_ONLY), there) == [((RANGE,), "frames")]


def test_a_symptom_with_its_code_is_one_case(monkeypatch) -> None:
    other = msgspec.structs.replace(recorded(0), spots=frozenset({"a place"}))
    for seen, below in ((look(recorded(0), recorded(0), other), None), (look(other), None)):
        found = cases(monkeypatch, seen, below)
        assert len(found) == len({one.spots for one in seen.sightings})
    twice = look(recorded(0), recorded(0), other, recorded(1, "later"))
    assert cases(monkeypatch, look(recorded(0)), twice) == [(RAW, RECORD)] * 2
