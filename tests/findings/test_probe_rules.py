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

from guestemu.abi.errors import EngineError
from guestemu.abi.x86 import Mode
from guestemu.campaign.planted.hosts_merged import HalfTruncatedHost
from guestemu.campaign.triage import probe as probes
from guestemu.campaign.triage.hostcode import ByteCodeTrace
from guestemu.campaign.triage.probe import Look, Probe, Sighting, lower_halves, neighbours
from guestemu.campaign.triage.rules import ACCEPTED
from guestemu.campaign.triage.symptom import Symptom
from guestemu.checks.base import Violation
from guestemu.host.standin import StandInVcpu
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header

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

    def _run(self, ops, traced):
        self.runs += 1
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
