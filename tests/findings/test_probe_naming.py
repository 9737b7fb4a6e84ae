# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls of the fixed battery, and what a violation is called by what other values show; on
hosts that take a register for less than it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from found import call, make_book

from guestemu.abi.errors import ProgramTimeError
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage import probe as probes
from guestemu.campaign.triage.probe import Probe, Sighting, _battery, _layouts
from guestemu.campaign.triage.rules import ACCEPTED
from guestemu.host.base import Hypercall
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.program.op_text import format_op
from guestemu.program.ops import Op, OpKind

BATTERY = Path(__file__).with_name("battery.txt")
PAGE = 4096


# The battery --------------------------------------------------------------------------------------


def test_the_battery_is_the_same_as_ever() -> None:
    """It decides which code is suspected, and with that the keys of findings: with another one the
    findings of a campaign that is continued are other ones."""
    lines = ["; ".join(map(format_op, ops)) for ops in _battery(2048)]
    assert lines == BATTERY.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("frames", [64, 65, 66, 67, 107, 127, 189, 190, 191, 1535, 1536])
def test_the_battery_s_layouts_lie_within_the_guest(frames: int) -> None:
    for ops in _layouts(frames):
        for op in ops:
            _, gpa, pages, *_ = op.arguments
            assert 0 <= gpa <= gpa + pages * PAGE <= frames * PAGE


# Registers that are cut ---------------------------------------------------------------------------


class Bent(MapGpaRangeHost):
    """Takes a call for what `bend` makes of it."""

    def __init__(self, bend: Callable[[Hypercall], Hypercall]) -> None:
        super().__init__()
        self._bend = bend

    def hypercall(self, call: Hypercall) -> int:
        return super().hypercall(self._bend(call))


class Keeps(Bent):
    """Takes the argument `name` for its lower bits."""

    def __init__(self, name: str, bits: int) -> None:
        def bend(call: Hypercall) -> Hypercall:
            return msgspec.structs.replace(call, **{name: getattr(call, name) & (1 << bits) - 1})

        super().__init__(bend)


def seen(host: MapGpaRangeHost, *ops: Op, traced: bool = True) -> tuple[Sighting, ...]:
    """What goes wrong at the last operation."""
    look = probe_of(host).look(ops, traced=traced)
    assert all(one.violation.op == len(ops) - 1 for one in look.sightings)
    return look.sightings


def names(host: MapGpaRangeHost, *ops: Op) -> set[str]:
    return {one.symptom.name.removeprefix("hypercall: ") for one in seen(host, *ops)}


def legacy(op: Op) -> Op:
    return msgspec.structs.replace(op, mode=Mode.COMPAT32)


COUNT, ADDRESS = "upper bits of the page count", "upper bits of the address"
NUMBER, ATTRIBUTES = "upper bits of the number", "upper bits of the attributes"
END, HALF = "upper bits of the end of the range", "upper halves of arguments"


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 32, 40, 52])
def test_a_page_count_that_is_cut(bits: int) -> None:
    host = Keeps("a1", bits)
    for few in (0, 1, 3) if bits <= 12 else (1, 3):  # where it leaves RAM it may be refused
        assert names(host, call(4 * PAGE, few | 1 << bits)) == {COUNT}
    assert seen(host, call(4 * PAGE, 3)) == ()


@pytest.mark.parametrize("bits", [31, 32, 40, 44, 48, 51])
def test_an_address_that_is_cut(bits: int) -> None:
    for gpa, pages in ((0, 1), (4 * PAGE, 3)):
        assert names(Keeps("a0", bits), call(gpa | 1 << bits, pages)) == {ADDRESS}
        shares = call(gpa, pages)
        assert names(Keeps("a0", bits), shares, call(gpa | 1 << bits, pages, 16)) == {ADDRESS}


def test_a_number_or_attributes_that_are_cut() -> None:
    for bits in (8, 16, 32):
        assert names(Keeps("nr", bits), call(PAGE, 1, nr=12 | 1 << bits)) == {NUMBER}
    assert names(Keeps("nr", 32), call(PAGE, 0, nr=12 | 1 << 32)) == {NUMBER}


def test_what_a_cut_does_to_another_value_names_it() -> None:
    """The call itself says no more than that nothing was recorded."""

    class Drops(Keeps):
        def hypercall(self, call: Hypercall) -> int:
            return 0 if not call.a1 & 0xFFFF_FFFF else super().hypercall(call)

    assert names(Drops("a1", 32), call(PAGE, 1 << 32)) == {COUNT}
    assert names(Drops("a1", 32), call(PAGE, 1 << 32, 1 << 40)) == {COUNT}

    class Ignores(MapGpaRangeHost):
        def hypercall(self, call: Hypercall) -> int:
            return 0 if call.a1 >= 1 << 32 else super().hypercall(call)

    assert names(Ignores(), call(PAGE, 1 << 32)) == {"record"}

    def far(call: Hypercall) -> Hypercall:
        return msgspec.structs.replace(call, a0=call.a0 & 0xFFFF_FFFF)

    private = call(1 << 32, 1, 16)
    assert names(Bent(far), private) == set(), "the page was private"


def test_a_count_that_is_bounded_is_none_that_is_cut() -> None:
    def bend(call: Hypercall) -> Hypercall:
        return msgspec.structs.replace(call, a1=min(call.a1, 4))

    for pages in (4 | 1 << 32, 9, 4 | 1 << 16):
        assert names(Bent(bend), call(PAGE, pages)) == {"record"}


def test_an_address_of_its_own_is_none_that_is_cut() -> None:
    def bend(call: Hypercall) -> Hypercall:
        return msgspec.structs.replace(call, a0=0) if call.a0 == 1 << 40 else call

    assert names(Bent(bend), call(1 << 40, 2)) == {"record"}


def test_a_range_whose_end_is_cut() -> None:
    class Cuts(MapGpaRangeHost):
        bits = 32

        def hypercall(self, call: Hypercall) -> int:
            end = (call.a0 // PAGE + call.a1) & (1 << self.bits) - 1
            if end < call.a0 // PAGE + 1 and call.a1 and not call.cpl and call.nr == 12:
                return 0
            return super().hypercall(call)

    for bits in (31, 32, 44, 48, 52):
        host = Cuts()
        host.bits = bits
        most = (1 << bits) - 1
        assert names(host, call(PAGE, most)) == {END}
        assert names(host, call(9 * PAGE, most - 8)) == {END}
        assert names(host, call(0, most)) == set()


@pytest.mark.parametrize("bits", [31, 32, 44])
def test_an_end_that_is_cut_of_every_range_reads_as_a_count(bits: int) -> None:
    def bend(call: Hypercall) -> Hypercall:
        first = call.a0 // PAGE
        few = (first + call.a1 & (1 << bits) - 1) - first
        return call if few < 0 or call.nr != 12 else msgspec.structs.replace(call, a1=few)

    assert names(Bent(bend), call(PAGE, 3 | 1 << bits)) == {COUNT}
    assert names(Bent(bend), call(0, 3 | 1 << bits)) == {COUNT}


def test_another_place_where_a_long_range_is_wrong_is_no_end_that_is_cut() -> None:
    class Refuses(MapGpaRangeHost):
        least = 0

        def hypercall(self, call: Hypercall) -> int:
            is_wrong = call.a1 >= self.least and call.nr == 12 and not call.a0 % PAGE
            return 0 if is_wrong else super().hypercall(call)

    for least in (2, (1 << 32) - 1, (1 << 32) - 2):
        host = Refuses()
        host.least = least
        assert names(host, call(PAGE, (1 << 32) - 1)) == {"record"}


def test_upper_halves_of_32_bit_code() -> None:
    class Wide(MapGpaRangeHost):
        def hypercall(self, call: Hypercall) -> int:
            return super().hypercall(msgspec.structs.replace(call, is_64bit=True))

    high = 1 << 32
    assert names(Wide(), legacy(call(high | PAGE, 1))) == {HALF}
    assert names(Wide(), legacy(call(PAGE, high | 1))) <= {HALF}
    assert names(Wide(), legacy(call(PAGE, 1, nr=high | 12))) == {"upper half of RAX"}
    assert names(Wide(), call(PAGE, 1)) == set()
    probe = probe_of(Wide())
    look = probe.look((call(0, 1), legacy(call(high | PAGE, 1)), call(9 * PAGE, 1)))
    assert [one.symptom.name for one in look.first] == [f"hypercall: {HALF}"]


def test_upper_halves_are_not_to_blame_where_the_lower_ones_do_the_same() -> None:
    """With code of their own they are."""

    class Three(MapGpaRangeHost):
        def hypercall(self, call: Hypercall) -> int:
            return 0 if call.a1 & 0xFF == 3 else super().hypercall(call)

    class Apart(MapGpaRangeHost):
        def hypercall(self, call: Hypercall) -> int:
            if call.a0 >> 32 and call.a1 == 3:
                return 0
            return super().hypercall(call)

    high = legacy(call(1 << 32 | PAGE, 3))
    assert names(Three(), high) == {"record"}
    assert names(Apart(), high) == {HALF}


def test_attributes_that_are_a_word() -> None:
    """The code of the status that was recorded is not to blame for its being recorded."""

    class Word(MapGpaRangeHost):
        def hypercall(self, call: Hypercall) -> int:
            return super().hypercall(msgspec.structs.replace(call, a2=16 if call.a2 else 0))

    for ops in ((call(PAGE, 1, 1),), (call(PAGE, 3), call(PAGE, 3), call(PAGE, 3, 7))):
        for one in seen(Word(), call(0, 1), call(0, 1, 16), *ops):
            assert one.symptom.name == "hypercall: record"
            assert one.spots == frozenset()


def test_what_comes_behind_in_the_program_stays() -> None:
    """A host that keeps one call to itself, which only the whole program shows."""
    probe = probe_of(Keeps("a1", 32))
    ops = (call(9 * PAGE, 1), call(PAGE, 3 | 1 << 32), call(20 * PAGE, 1))
    look = probe.look(ops, traced=True)
    assert [one.violation.op for one in look.first] == [1]
    assert {one.symptom.name for one in look.first} == {f"hypercall: {COUNT}"}


# What a look has ----------------------------------------------------------------------------------


class Three(MapGpaRangeHost):
    """Forgets ranges of three pages."""

    def hypercall(self, call: Hypercall) -> int:
        if call.a1 == 3:
            return 0
        return super().hypercall(call)


THREE, RIGHT, SAME = call(4 * PAGE, 3), call(8 * PAGE, 1), call(12 * PAGE, 1, 16)


def probe_of(host: MapGpaRangeHost) -> Probe:
    executor = make_book(host)._executor
    return Probe(executor.testbed, executor.header)


def test_runs_exits_and_the_belief_at_the_end() -> None:
    probe = probe_of(Three())
    look = probe.look((RIGHT, THREE, Op(OpKind.READ, (0,))))
    assert [[record.ret for record in exits] for exits in look.exits] == [[0], [0], []]
    assert not look.private[8]
    assert look.private[4]
    assert not look.is_ready
    assert not look.is_used_up
    assert probe.runs >= 1
    right = probe_of(Three())
    right.look((RIGHT,))
    right.look((RIGHT,))
    assert right.runs == 2


def test_each_operation_may_use_up_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    for used_up in range(2):
        outcomes: list[object] = []

        def is_used_up(outcome: object, used_up=used_up, outcomes=outcomes) -> bool:
            outcomes.append(outcome)
            return len(outcomes) == used_up + 1

        monkeypatch.setattr(probes, "_is_used_up", is_used_up)
        assert probe_of(MapGpaRangeHost()).look((RIGHT, THREE)).is_used_up


def test_only_a_traced_look_has_code_and_nothing_is_traced_afterwards() -> None:
    probe = probe_of(Three())
    before = sys.gettrace()
    (plain,) = probe.look((THREE,)).first
    (traced,) = probe.look((THREE,), traced=True).first
    assert plain.spots == frozenset()
    assert traced.spots != frozenset()
    assert sys.gettrace() is before


def test_code_is_cleared_by_what_is_right_and_convincing() -> None:
    for before, is_cleared in (
        ((RIGHT,), True),
        ((SAME,), False),
        ((THREE, RIGHT), False),
        ((RIGHT, THREE), True),
        ((call(1, 1),), False),
    ):
        probe = probe_of(Three())
        probe.look(before, traced=True)
        (found,) = probe.look((THREE,), traced=True).first
        places = probe.code.places(probe.suspicious(found))
        assert [place.rpartition(": ")[2] for place in places] == ["return 0"] * is_cleared


def test_an_untraced_look_clears_nothing() -> None:
    probe = probe_of(Three())
    probe.look((RIGHT,))
    (found,) = probe.look((THREE,), traced=True).first
    assert probe.suspicious(found) == frozenset()


def test_code_of_a_model_is_not_suspected() -> None:
    """Of a host of guestemu itself all code is looked at, of a user's its own."""
    model, user = probe_of(MapGpaRangeHost()), probe_of(Three())
    for probe in (model, user):
        probe.look((RIGHT,), traced=True)
    files = [
        {place.partition(".py:")[0].rpartition("/")[2] for place in probe.code.places(spots)}
        for probe in (model, user)
        for spots in [probe._cover[ACCEPTED]]
    ]
    assert "reference" in files[0]
    assert files[1] == {"test_probe_naming"}
    assert model.sees_code


def test_checks_that_are_ignored_see_nothing() -> None:
    class Wrong(Three):
        def hypercall(self, call: Hypercall) -> int:
            answer = super().hypercall(call)
            return 7 if call.a1 == 3 else answer

    for ignored, checks in ((set(), {"results"}), ({"results"}, set()), ({"record"}, {"results"})):
        probe = probe_of(Wrong())
        probe.ignored = frozenset(ignored)
        look = probe.look((THREE,))
        assert {one.violation.check for one in look.first} == checks
        assert {found.check for found in look.violations} == checks


def test_a_run_is_bounded_and_leaves_the_testbed_as_it_was() -> None:
    calls: list[str] = []
    probe = probe_of(Three())
    observer, handler = probe.testbed.observe, probe.testbed.guest.machine.hooks.handler
    bound = SimpleNamespace(
        renew=lambda: calls.append("renew"), rest=lambda: calls.append("rest"), is_up=False, text=""
    )
    probe.bound = bound
    probe.look((RIGHT,), traced=True)
    assert calls == ["renew", "rest"]
    bound.is_up, bound.text = True, "too long"
    with pytest.raises(ProgramTimeError, match="too long"):
        probe.look((THREE,))
    assert probe.testbed.observe is observer
    assert probe.testbed.guest.machine.hooks.handler is handler
