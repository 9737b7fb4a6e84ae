# SPDX-License-Identifier: GPL-2.0-or-later
"""What a probe remembers, when a search is over, which code is suspicious, which programs are
near; on runs that are written by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import msgspec
import pytest
from bitarray import bitarray
from found import call

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errors import EngineError
from guestemu.abi.x86 import Mode
from guestemu.campaign.planted.hosts_merged import HalfTruncatedHost
from guestemu.campaign.triage import probe as probes
from guestemu.campaign.triage.hostcode import ByteCodeTrace
from guestemu.campaign.triage.probe import Look, Probe, Sighting, lower_halves, neighbours
from guestemu.campaign.triage.rules import ACCEPTED
from guestemu.campaign.triage.symptom import Symptom
from guestemu.checks.base import Violation
from guestemu.guest.base import CallOutcome
from guestemu.host.standin import StandInVcpu
from guestemu.machine.exits import BudgetExhausted
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import HOST_FAILED

NOTHING = Look((), (), bitarray(1), is_ready=False)
READ = Op(OpKind.READ, (0,))
CALL = call(0x1000, 2, 16)


class Told(Probe):
    """A probe that runs nothing: every run clears `clears`."""

    def __init__(self, is_slow: bool = False) -> None:
        guest = SimpleNamespace(name="linux:6.12" if is_slow else "snippet:6.1")
        checks = (1, 2)
        super().__init__(SimpleNamespace(host=object(), checks=checks, guest=guest), Header())
        self.clears: tuple[tuple[str, frozenset[str]], ...] = ()
        self.ran: list[tuple[Op, ...]] = []
        self.traced: list[bool] = []

    def _run(self, ops, traced):
        self.runs += 1
        self.traced.append(traced)
        self.ran.append(ops)
        return NOTHING, self.clears


def sighting(situation: str, *spots: str, op: int = 0) -> Sighting:
    found = Violation("record", op, "", "")
    return Sighting(found, Symptom("hypercall: record"), situation, frozenset(spots))


def test_the_first_operation_that_went_wrong_has_the_first_sightings() -> None:
    one, two, later = sighting("a"), sighting("b"), sighting("c", op=2)
    for seen in ((), (one,), (one, two)):
        look = Look(seen, (), bitarray(1), is_ready=False)
        assert look.first == seen
    look = Look((one, two, later), (), bitarray(1), is_ready=False)
    assert look.first == (one, two)
    assert Look((one, later), (), bitarray(1), is_ready=False).first == (one,)
    assert look.violations == [found.violation for found in (one, two, later)]


# Suspicious code ----------------------------------------------------------------------------------


def suspicious(own: str, *cleared: tuple[str, str]) -> set[str]:
    """What of the code `x y z` is suspicious in the situation `own` after runs that were right."""
    probe = Told()
    for situation, spots in cleared:
        probe.clears = ((situation, frozenset(spots)),)
        probe.look((CALL,), traced=True)
    return set(probe.suspicious(sighting(own, "x", "y", "z")))


def test_code_of_an_accepted_call_is_cleared_by_accepted_calls_only() -> None:
    assert suspicious(ACCEPTED, (ACCEPTED, "x")) == {"y", "z"}
    assert suspicious(ACCEPTED, (ACCEPTED, "x"), (ACCEPTED, "y")) == {"z"}
    assert suspicious(ACCEPTED, (ACCEPTED, "x"), ("number", "y"), ("wrap", "z")) == {"y", "z"}
    assert suspicious(ACCEPTED) == set(), "no line can be told from the others"
    assert suspicious(ACCEPTED, ("number", "x")) == set()


def test_code_of_a_call_that_is_refused() -> None:
    assert suspicious("alignment") == {"x", "y", "z"}
    assert suspicious("alignment", (ACCEPTED, "x"), ("alignment", "y")) == {"y", "z"}
    assert suspicious("number", (ACCEPTED, "x"), ("alignment", "y")) == {"z"}


# The end of a search ------------------------------------------------------------------------------


def test_a_search_is_over_after_its_runs() -> None:
    probe = Told()
    assert not probe.is_over
    probe.look((CALL,))
    probe.limit(2)
    for left in (True, True, False, False):
        assert (probe.try_look((CALL,)) is not None) is left
    assert probe.look_again((CALL,)) is NOTHING, "whatever the bound"
    probe.limit(None)
    assert not probe.is_over


def test_a_bound_only_comes_nearer() -> None:
    probe = Told()
    for runs in (5, 2, 4):
        probe.shorten(runs)
    assert [probe.try_look((CALL,)) is not None for _ in range(3)] == [True, True, False]


def test_a_search_is_over_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.time, "monotonic", lambda: 100.0)
    probe = Told()
    for deadline, is_over in ((100.5, False), (100.0, True), (99.0, True), (math.inf, False)):
        probe.limit(None, deadline)
        assert probe.is_over is is_over


def test_programs_that_cannot_run_or_may_not_be_come_to_are_not_looked_at() -> None:
    probe = Told(is_slow=True)
    probe.allows = lambda ops: ops != (READ,)
    assert probe.try_look((READ,)) is None
    assert probe.try_look((CALL,)) is NOTHING
    fast = Told()
    fast.allows = probe.allows
    assert fast.try_look((READ,)) is NOTHING, "where runs are quick the caller asks"
    assert fast.try_look((call(0, 1, cpl=0), Op(OpKind.DMA_ALLOC, (1, 1, 0)))) is NOTHING
    real = msgspec.structs.replace(CALL, mode=Mode.REAL16, cpl=3)
    assert fast.try_look((CALL, real)) is None
    assert real not in fast.ran

    def breaks(ops, traced):
        raise EngineError("no")

    fast._run = breaks
    assert fast.try_look((CALL,)) is None


def test_slow_runs_are_remembered_the_latest_of_them() -> None:
    probe = Told(is_slow=True)
    programs = [(Op(OpKind.READ, (number,)),) for number in range(257)]
    for ops in (*programs[:256], programs[0], programs[256], programs[0]):
        probe.look(ops)
    assert len(probe.ran) == 257
    probe.look(programs[1])
    assert probe.ran[257:] == [programs[1]], "unused for longest"
    probe.look(programs[0], traced=True)
    assert len(probe.ran) == 259
    for probe in (Told(is_slow=True), Told()):
        ops = (CALL,) if probe.is_slow else programs[0]
        assert [probe.look(ops), probe.look(ops)] == [NOTHING] * 2
        assert len(probe.ran) == 2, "a hypercall, or where runs are quick"


def test_host_code_is_looked_at_only_where_it_is_asked_for() -> None:
    probe = Told()
    probe.look((CALL,))
    probe.try_look((CALL,))
    probe.try_look((CALL,), traced=True)
    probe.look_again((CALL,))
    assert probe.traced == [False, False, True, True]
    assert not NOTHING.is_used_up


def test_every_program_may_be_looked_at_by_default() -> None:
    assert Told(is_slow=True).try_look((READ,)) is NOTHING


def test_the_caller_hears_of_every_run() -> None:
    probe = Told()
    beats: list[int] = []
    probe.heartbeat = lambda: beats.append(probe.runs)
    probe.look((CALL,))
    probe.look((CALL,))
    assert beats == [0, 1]


# Programs that are near ---------------------------------------------------------------------------


def test_the_lower_halves_of_a_call() -> None:
    high = 1 << 40
    assert list(lower_halves(CALL)) == []
    wide = call(high | 0x1000, high | 2, high | 16, nr=high | 12)
    assert list(lower_halves(wide)) == [
        ("upper half of RAX", call(high | 0x1000, high | 2, high | 16)),
        ("upper halves of arguments", CALL),
    ]
    assert list(lower_halves(call(high | 0x1000, 2, 16))) == [("upper halves of arguments", CALL)]


def test_neighbours_differ_in_one_field() -> None:
    near = list(neighbours(CALL))
    assert CALL not in near
    for other in near:
        fields = [a != b for a, b in zip(CALL.arguments, other.arguments, strict=True)]
        assert sum(fields) + (other.mode is not CALL.mode) + (other.cpl != CALL.cpl) == 1
    assert {other.arguments[2] for other in near} >= {0, 1, 3, 4, 16}
    assert {other.mode for other in near} == set(Mode)
    assert {other.cpl for other in near} == {0, 3}
    user = msgspec.structs.replace(CALL, cpl=3)
    assert [other.cpl for other in neighbours(user) if other.mode is CALL.mode][-1] == 0
    assert {other.mode for other in neighbours(READ)} == {Mode.LONG64}
    write = Op(OpKind.WRITE, (7, 0, 1))
    values = [other.arguments[0] for other in neighbours(write) if other.arguments[0] != 7]
    assert values[:6] == [0, 1, 2, 3, 4, 16]


def test_other_attributes_are_the_only_change() -> None:
    assert probes.with_attributes(CALL, 7) == call(0x1000, 2, 7)


# Whose code counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_model", [False, True])
def test_the_code_of_a_planted_bug_is_its_hosts_and_the_model_below_is_not(is_model) -> None:
    """A class of the zoo is what a user's is: the model that it derives from is not suspected."""
    host = HalfTruncatedHost()
    host.reset(64)
    code = ByteCodeTrace(is_model)
    code.start()
    try:
        host.hypercall(StandInVcpu(is_64bit=False).hypercall(12, 0x1000, 1))
    finally:
        code.stop()
    files = {place.partition(".py:")[0].rpartition("/")[2] for place in code.places(code.take())}
    assert "hosts_merged" in files
    assert ("merged" in files) is is_model


# The battery and its neighbours -------------------------------------------------------------------


class Scripted(Told):
    """A probe whose runs are `looks`, by program; others show nothing and clear nothing. Its
    battery is `programs`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *programs: tuple[Op, ...]) -> None:
        super().__init__()
        self.testbed.guest.machine = SimpleNamespace(config=SimpleNamespace(frames=64))
        self.looks: dict[tuple[Op, ...], Look] = {}
        monkeypatch.setattr(probes, "_battery", lambda frames: programs[:frames])

    def _run(self, ops, traced):
        assert traced
        super()._run(ops, traced)
        return self.looks.get(ops, NOTHING), self.clears


def wrong(symptom: str, *spots: str, situation: str = ACCEPTED, check: str = "record") -> Look:
    found = Sighting(Violation(check, 0, "", ""), Symptom(symptom), situation, frozenset(spots))
    return Look((found,), (), bitarray(1), is_ready=False)


def ways(count: int, first: int = 0) -> list[tuple[Op, ...]]:
    return [(call(0x1000, first + number),) for number in range(count)]


def test_the_battery_runs_once_whatever_cannot_run(monkeypatch) -> None:
    cannot = (msgspec.structs.replace(CALL, mode=Mode.REAL16, cpl=3),)
    probe = Scripted(monkeypatch, cannot, *ways(3))
    probe.run_battery()
    probe.run_battery()
    assert probe.ran == ways(3)
    assert not probe.is_wrong_throughout


def test_the_battery_ends_on_a_host_that_often_fails(monkeypatch) -> None:
    for failing, runs in ((15, 40), (16, 19), (17, 19)):
        probe = Scripted(monkeypatch, *ways(40))
        for ops in ways(failing, first=3):
            probe.looks[ops] = wrong("raises", check=HOST_FAILED)
        probe.run_battery()
        assert len(probe.ran) == runs


def test_where_no_accepted_call_is_right_common_ways_to_go_wrong_say_nothing(monkeypatch) -> None:
    probe = Scripted(monkeypatch, *ways(30))
    (second,) = wrong("second", "a", "s").first
    for ops in ways(14):
        common = wrong("common", "a")
        probe.looks[ops] = msgspec.structs.replace(common, sightings=(*common.first, second))
    for ops in ways(2, first=14):
        probe.looks[ops] = wrong("rare", "b")
    for ops in ways(6, first=18):
        probe.looks[ops] = wrong("refused", "c", situation="number")
    probe.run_battery()
    assert probe.is_wrong_throughout
    (common,) = wrong("common", "a", "x").first
    (rare,) = wrong("rare", "a", "b").first
    (refused,) = wrong("refused", "a", "c").first
    assert probe.suspicious(common) == set()
    assert probe.suspicious(rare) == {"b"}, "what it adds to them"
    assert probe.suspicious(refused) == {"c"}
    assert probe.suspicious(second) == {"s"}, "a call goes wrong in the way that shows first"
    probe.clears = ((ACCEPTED, frozenset("y")),)
    probe.look((CALL,), traced=True)
    assert not probe.is_wrong_throughout
    assert probe.suspicious(common) == {"a", "x"}


def test_a_fresh_probe_knows_the_battery_only(monkeypatch) -> None:
    probe = Scripted(monkeypatch, *ways(3))
    monkeypatch.setattr(Probe, "_run", lambda self, ops, traced: Told._run(self, ops, traced))
    probe.clears = ((ACCEPTED, frozenset("a")),)
    probe.limit(9)
    fresh = probe.fresh()
    assert probe.ran == ways(3), "it runs first"
    probe.clears = ((ACCEPTED, frozenset("b")),)
    probe.look((CALL,), traced=True)
    assert probe.suspicious(sighting(ACCEPTED, "a", "b", "c")) == {"c"}
    assert fresh.suspicious(sighting(ACCEPTED, "a", "b", "c")) == {"b", "c"}
    later = probe.fresh()
    for one, left in ((fresh, 6), (later, 5)):
        one.ran, one.traced, one.clears = [], [], ()
        one.run_battery()
        assert one.ran == []
        while not one.is_over:
            one.look((CALL,))
        assert len(one.ran) == left
    probe.limit(None)
    assert probe.fresh()._runs_left is None


def beside(is_slow: bool, *spots: str, used_up: int | None = None) -> Told:
    """A probe that looked beside a call that goes wrong with this code; with as many pages the
    guest uses up its budget."""
    probe = Told(is_slow)
    probe.clears = ((ACCEPTED, frozenset("z")),)
    ran = probe._run

    def run(ops, traced):
        look, cleared = ran(ops, traced)
        is_used_up = ops[-1].arguments[2] == used_up
        return msgspec.structs.replace(look, is_used_up=is_used_up), cleared

    probe._run = run
    found = probe.suspicious_beside((READ, CALL), sighting("alignment", *spots, op=1))
    assert found == set(spots) - ({"z"} if probe.ran else set())
    assert all(probe.traced)
    return probe


def test_what_is_near_and_right_clears_code() -> None:
    near = [(READ, op) for op in neighbours(CALL)]
    assert beside(False, "y", "z").ran == near
    assert beside(False).ran == near
    assert beside(True, "y", "z").ran == near[:40]
    assert beside(True).ran == [], "nothing can be cleared"


def test_of_a_count_that_uses_up_the_budget_no_larger_one_is_tried() -> None:
    near = [(READ, op) for op in neighbours(CALL)]
    assert any(ops[1].arguments[2] == U64_MASK for ops in near)
    assert beside(False, used_up=33).ran == [ops for ops in near if ops[1].arguments[2] <= 33]


def test_a_budget_is_used_up() -> None:
    used_up = BudgetExhausted(rip=0x1000)
    assert probes._is_used_up(CallOutcome(None, used_up))
    assert not probes._is_used_up(CallOutcome(0, None))
    assert not probes._is_used_up(SimpleNamespace(end=used_up))


# Calls that tell a cut from a place ---------------------------------------------------------------


def marks(op: Op, is_count: bool) -> list[int]:
    probe = Told()
    probe.testbed.guest.machine = SimpleNamespace(config=SimpleNamespace(frames=64))
    found = probe._marks(op, is_count)
    assert len(set(found)) == len(found)
    for one in found:
        assert (one.mode, one.cpl) == (Mode.LONG64, 0)
        assert one.arguments[2:4] == (1, 0 if op.arguments[3] & 16 else 16), "the other status"
        assert (one.arguments[0], *one.arguments[4:]) == (op.arguments[0], *op.arguments[4:])
    return [one.arguments[1] for one in found]


def test_pages_at_the_end_that_a_cut_count_leaves() -> None:
    page = 0x1000
    assert marks(call(4 * page, 3 | 1 << 9), True) == [6 * page, 7 * page, 8 * page]
    assert marks(call(4 * page, 3 | 1 << 9, 17, cpl=3), True) == [6 * page, 7 * page, 8 * page]
    assert marks(call(4 * page, 1 << 9), True) == [4 * page, 5 * page, 6 * page], "none is one"
    assert marks(call(4 * page, 3 | 1 << 8), True) == [6 * page, 7 * page, 8 * page]
    assert marks(call(4 * page, 3 | 1 << 51), True) == [6 * page, 7 * page, 8 * page]
    assert marks(call(4 * page, 63 | 1 << 9), True) == [66 * page, 67 * page, 68 * page]
    assert marks(call(4 * page, 64 | 1 << 9), True) == [], "more than there are"
    assert marks(call(4 * page, 3), True) == []
    top = (1 << 64) - page
    assert marks(call(top, 3 | 1 << 9), True) == [page, 2 * page, 3 * page]
    assert marks(call(top, 1 | 1 << 9), True) == [top, 0, page]
    two = 1 | 2 << 8 | 1 << 12
    assert marks(call(0, two), True) == [0, page, 2 * page], "of 513 pages there are not so many"
    assert marks(call(0, 1 | 1 << 4 | 1 << 9), True) == [16 * page, 17 * page, 18 * page]


def test_first_pages_of_an_address_that_is_cut() -> None:
    page = 0x1000
    for bits in (31, 32, 40, 51):
        assert marks(call(5 * page | 1 << bits, 2), False) == [5 * page, 6 * page, 7 * page]
    assert marks(call(5 * page | 1 << 30, 2), False) == []
    assert marks(call(63 * page | 1 << 40, 2), False) == [63 * page, 64 * page, 65 * page]
    assert marks(call(64 * page | 1 << 40, 2), False) == []
    assert marks(call(5 * page, 2), False) == []
