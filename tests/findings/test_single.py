# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of one program outside of a campaign: what is run before the search, what bounds it,
and which programs it may come to; on a testbed and a search that are written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from found import call

from guestemu.abi.errors import InputError
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage import single
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, Program

PROGRAM = Program(Header(), (call(0x1000, 1),))
LOOK = object()


class Search:
    """What `findings_of` does, in its order, with nothing behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[object] = []
        self.ends = self.ends_scout = False
        self.cost = 0.0
        self.found = [[SimpleNamespace(key="record-hypercall-1")]]
        self.probe = SimpleNamespace(
            run_battery=lambda: self.done.append("battery"), look=self._look, limit=self._limit
        )
        testbed = SimpleNamespace(
            host=object(),
            guest=SimpleNamespace(machine=7),
            close=lambda: self.done.append("close"),
            scout=None,
        )
        self.testbed = testbed
        for name, value in (
            ("judged_testbed", lambda header: testbed),
            ("Watchdog", self._watchdog),
            ("Probe", lambda *made: self.probe),
            ("Scout", self._scout),
            ("may_end_process", lambda host: self.ends and host is testbed.host),
            ("cases_of", lambda probe, ops, look: range(len(self.found)) if look is LOOK else []),
            ("identify", lambda probe, case: self.found[case]),
            ("time", SimpleNamespace(process_time=self._time)),
        ):
            monkeypatch.setattr(single, name, value)
        self._at = 0.0

    def _time(self) -> float:
        self._at, was = self._at + self.cost, self._at
        return was

    def _look(self, ops: object, traced: bool) -> object:
        self.done.append(("look", traced))
        return LOOK

    def _limit(self, runs: int) -> None:
        self.done.append(("limit", runs))

    def _watchdog(self, machine, seconds: float):
        search = self

        class Bound:
            def __enter__(self):
                search.done.append(("bound", machine(), seconds))
                return self

            def rest(self) -> None:
                search.done.append("rest")

            def __exit__(self, *_error: object) -> None:
                search.done.append("free")

        return Bound()

    def _scout(self, testbed: object) -> object:
        return SimpleNamespace(
            try_out=lambda ops: self.done.append(("tried", ops)),
            met_end=self.ends_scout,
            close=lambda: self.done.append("scout closed"),
        )


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    return Search(monkeypatch)


def test_the_bound_rests_until_a_run_and_the_testbed_is_closed(search) -> None:
    single.findings_of(PROGRAM, 3.0)
    begin = [("bound", 7, 3.0), "rest", "battery", ("look", True)]
    assert search.done == [*begin, "free", "close"]

    def broken() -> None:
        raise InputError("no")

    search.done.clear()
    search.probe.run_battery = broken
    with pytest.raises(InputError):
        single.findings_of(PROGRAM)
    assert search.done[-2:] == ["free", "close"]


def test_a_program_that_cannot_be_is_refused(search) -> None:
    real = msgspec.structs.replace(PROGRAM.ops[0], mode=Mode.REAL16, cpl=3)
    wrong = Program(Header(), (real,))
    with pytest.raises(InputError):
        single.findings_of(wrong)
    assert search.done == []


def test_a_host_that_may_end_the_process_is_tried_in_another_one(search) -> None:
    for ends, ends_scout in ((False, False), (True, False), (True, True)):
        search.ends, search.ends_scout = ends, ends_scout
        search.done.clear()
        single.findings_of(PROGRAM)
        assert (("tried", PROGRAM.ops) in search.done) is ends
        assert ("scout closed" in search.done) is (ends and not ends_scout)
        assert (search.testbed.scout is not None) is ends_scout, "kept where it met an end"


def test_a_search_with_slow_runs_has_a_few_seconds(search) -> None:
    for cost, limits in ((0.01, []), (0.05, []), (0.5, [("limit", 16)])):
        search.done.clear()
        search.cost, search._at = cost, 0.0
        single.findings_of(PROGRAM)
        assert [one for one in search.done if one[0] == "limit"] == limits


def test_a_search_comes_to_its_own_operations_and_to_those_of_campaigns() -> None:
    early = Op(OpKind.EARLY_SET_MEMORY_DECRYPTED, (100, 5))
    far, farther = (Op(OpKind.READ, (offset,)) for offset in (5000, 6000))
    allows = single._near(Program(Header(), (far, PROGRAM.ops[0])))
    assert allows((far,)), "its own, which no campaign would have"
    assert allows((call(0x2000, 3), early, far)), "a campaign's callers may be wrong"
    assert not allows((farther,))
    assert not allows((far, farther))
    assert allows(())


def test_each_finding_once_in_the_order_in_which_it_shows(search) -> None:
    def named(*keys: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(key=key) for key in keys]

    search.found = [named("status-x-2", "record-y-1"), named("results-z-2"), [], named("a-b-3")]
    found = single.findings_of(PROGRAM)
    assert [one.key for one in found] == ["status-x-2", "record-y-1", "a-b-3"]
