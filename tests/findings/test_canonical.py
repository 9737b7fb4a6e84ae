# SPDX-License-Identifier: GPL-2.0-or-later
"""The one program that stands for a defect: which programs are tried for it, in which order and how
many, and what they have to show; on probes that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest
from bitarray import bitarray
from found import call

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage import canonical
from guestemu.campaign.triage.canonical import Canonical, Suspect, find_suspect
from guestemu.campaign.triage.probe import Look, Sighting
from guestemu.campaign.triage.symptom import RECORD, Symptom
from guestemu.checks.base import Violation
from guestemu.program.ops import Argument, Op, OpKind
from guestemu.program.program import Header

PAGE = 4096
PRIVATE = 16
READ, RESET = Op(OpKind.READ, (0,)), Op(OpKind.VM_RESET)
SUSPECT = Suspect(RECORD, frozenset(), ())
ONE, TWO, THREE, FOUR = (call(frame * PAGE, 1) for frame in range(4))
PAGED = msgspec.structs.replace(call(0, 1), has_page=True, region=Region.L, page=3)

Program = tuple[Op, ...]


def seen(*spots: str, effect: str = "", check: str = "record", name: str = RECORD) -> Sighting:
    return Sighting(Violation(check, 0, "", ""), Symptom(name, effect), "", frozenset(spots))


def look(*sightings: Sighting) -> Look:
    return Look(sightings, (), bitarray(1), is_ready=False)


class Told:
    """A probe of a host that goes wrong in the programs that `fails` names. `programs` are those
    that ran, `traced` those whose host code was looked at."""

    header = Header(vcpus=2)

    def __init__(self, fails: Callable[[Program], bool], is_slow: bool = False) -> None:
        self.is_slow = is_slow
        self.programs: list[Program] = []
        self.traced: list[Program] = []
        self.allows: Callable[[Program], bool] = lambda ops: True
        self._fails = fails

    def try_look(self, ops: Program, traced: bool = False) -> Look:
        (self.traced if traced else self.programs).append(ops)
        return look(seen()) if self._fails(ops) else look()

    def suspicious(self, sighting: Sighting) -> frozenset[str]:
        return sighting.spots


def search(fails: Callable[[Program], bool], is_slow: bool = False) -> tuple[Canonical, Told]:
    told = Told(fails, is_slow)
    return Canonical(told, SUSPECT), told


def always(_ops: Program) -> bool:
    return True


def never(_ops: Program) -> bool:
    return False


# What is tried in place of an operation -----------------------------------------------------------


def test_a_conversion_becomes_an_earlier_kind_of_as_many_pages() -> None:
    early = Op(OpKind.EARLY_SET_MEMORY_ENCRYPTED, (2 * PAGE + 1, 3))
    assert [(op.kind, op.arguments) for op in canonical._kinds(early)] == [
        (OpKind.SET_MEMORY_DECRYPTED, (1, 0)),
        (OpKind.SET_MEMORY_DECRYPTED, (3, 3)),
        (OpKind.SET_MEMORY_ENCRYPTED, (1, 0)),
        (OpKind.SET_MEMORY_ENCRYPTED, (3, 3)),
        (OpKind.EARLY_SET_MEMORY_DECRYPTED, (PAGE, 0)),
        (OpKind.EARLY_SET_MEMORY_DECRYPTED, (2 * PAGE + 1, 3)),
    ]
    whole = Op(OpKind.EARLY_SET_MEMORY_DECRYPTED, (2 * PAGE, 0))
    assert [op.arguments for op in canonical._kinds(whole)] == [(1, 0), (2, 0)] * 2
    private = Op(OpKind.SET_MEMORY_ENCRYPTED, (5, 6), page=7)
    assert list(canonical._kinds(private)) == [
        Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), page=7),
        Op(OpKind.SET_MEMORY_DECRYPTED, (5, 6), page=7),
    ]
    for op in (Op(OpKind.SET_MEMORY_DECRYPTED, (5, 6)), READ):
        assert list(canonical._kinds(op)) == []


def test_every_mode_privilege_and_instruction_that_there_is() -> None:
    calls = [(op.mode, op.cpl, op.instruction) for op in canonical._modes(ONE)]
    assert calls[:3] == [
        (Mode.LONG64, 0, Instruction.VMMCALL),
        (Mode.LONG64, 0, Instruction.VMCALL),
        (Mode.LONG64, 1, Instruction.VMMCALL),
    ]
    assert len(calls) == len(set(calls)) == 2 * (3 * 4 + 1)
    assert {cpl for mode, cpl, _ in calls if mode is Mode.REAL16} == {0}
    assert {cpl for mode, cpl, _ in calls if mode is Mode.PROT32} == {0, 1, 2, 3}
    reads = list(canonical._modes(Op(OpKind.RDMSR, (1,))))
    assert len(reads) == 3 * 4 + 1
    assert {op.instruction for op in reads} == {Instruction.VMMCALL}
    assert list(canonical._modes(READ)) == []


def test_the_first_pages_of_the_regions_up_to_the_own_one() -> None:
    op = Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.L, 2)
    places = [(one.region, one.page) for one in canonical._pages(op)]
    first = [(Region.D, page) for page in range(4)]
    assert places == [*first, *((Region.L, page) for page in range(3))]
    assert list(canonical._pages(RESET)) == []


def test_a_range_of_32_bit_code_as_one_of_64_bit_code() -> None:
    high = 1 << 40
    op = msgspec.structs.replace(call(high | PAGE, high | 7, high | 16), mode=Mode.PROT32)
    found = list(canonical._in_long_mode(op))
    assert {one.mode for one in found} == {Mode.LONG64}
    assert {(one.arguments[:2], one.arguments[3:]) for one in found} == {((12, PAGE), (16, 0))}
    pages = [one.arguments[2] for one in found]
    assert pages == sorted(pages)
    assert pages[:10] == [*range(9), 32]
    assert pages[-1] == (1 << 32) - 1, "of any more the upper half would be cut"
    paged = msgspec.structs.replace(PAGED, mode=Mode.PROT32)
    for other in (call(PAGE, 7), paged, Op(OpKind.RDMSR, (1,), mode=Mode.PROT32)):
        assert list(canonical._in_long_mode(other)) == []


def test_the_default_of_a_value_then_what_is_simpler() -> None:
    def values(argument: Argument, current: int, default: int) -> list[int]:
        return list(canonical._candidates(argument, current, default))

    assert values(Argument.COUNT, 3, 1) == [1, 0, U64_MASK, 2, U64_MASK - 1, 3]
    assert values(Argument.COUNT, 1, 1) == [0, 1]
    for wide in (Argument.COUNT, Argument.ADDRESS, Argument.U64):
        assert values(wide, 9, 0)[:4] == [0, 1, U64_MASK, 2]
        assert values(wide, 9, 0)[-3:] == [8, U64_MASK - 7, 9]
    assert values(Argument.BYTE, 9, 0) == list(range(10)), "a byte is never below 0"
    assert values(Argument.HYPERCALL_NUMBER, 12, 12) == [*range(10), 10, 11, 12]


def test_address_and_length_together() -> None:
    ranges = [op.arguments[1:3] for op in canonical._coupled(call(3 * PAGE, 2, PRIVATE))]
    addresses = [gpa for gpa, pages in ranges if pages == 0]
    assert [pages for gpa, pages in ranges if gpa == 0] == [0, 1, U64_MASK, 2]
    assert addresses[:5] == [0, 1, U64_MASK, 0x7FF, 0xFFF], "by how far they are from 0"
    assert {frame * PAGE for frame in range(65)} <= set(addresses)
    assert 65 * PAGE not in addresses
    assert ranges[-1] == (3 * PAGE, 2)
    odd = 77 * PAGE + 5
    assert odd in {op.arguments[1] for op in canonical._coupled(call(odd, 2))}
    assert {op.arguments[3:] for op in canonical._coupled(call(odd, 2, 7))} == {(7, 0)}
    for op in (READ, PAGED):
        assert list(canonical._coupled(op)) == []


def test_one_argument_after_the_other() -> None:
    op = call(1, 2, 1)
    assert [one.arguments for one in canonical._values(op)] == [
        *((nr, 1, 2, 1, 0) for nr in range(12)),
        *((12, gpa, 2, 1, 0) for gpa in (0,)),
        *((12, 1, pages, 1, 0) for pages in (0, 1, U64_MASK)),
        (12, 1, 2, 0, 0),
        op.arguments,
    ]


def test_programs_with_a_range_of_other_length_elsewhere() -> None:
    ops = (READ, call(3 * PAGE, 2))
    near = set(canonical.around_twice(ops)) - set(canonical.around(ops))
    assert (READ, call(PAGE, 3)) not in near, "a longer one is not simpler"
    assert (READ, call(PAGE, 1)) in near
    assert {one[:1] for one in near} == {(READ,)}
    first = set(canonical.around_twice(ops[::-1])) - set(canonical.around(ops[::-1]))
    assert {one[1:] for one in first} == {(READ,)}
    assert {len(one) for one in (*near, *first)} == {2}


def test_a_range_that_comes_again_or_is_met_moves_along() -> None:
    ops = (call(0, 2), call(2 * PAGE, 1, PRIVATE), READ, call(0, 2, PRIVATE))
    one = (call(PAGE, 4), *ops[1:])
    again = (*one[:3], call(PAGE, 4, PRIVATE))
    met = (call(PAGE, 4), call(5 * PAGE, 1, PRIVATE), *ops[2:])
    assert list(canonical._with(ops, 0, call(PAGE, 4))) == [one, again, met]
    assert list(canonical._with(ops, 1, call(8 * PAGE, 1))) == [
        (ops[0], call(8 * PAGE, 1), *ops[2:])
    ]
    assert list(canonical._with(ops, 2, RESET)) == [(*ops[:2], RESET, ops[3])]
    assert list(canonical._with(ops, 0, PAGED)) == [(PAGED, *ops[1:])]
    assert list(canonical._with((PAGED, PAGED), 0, ONE)) == [(ONE, PAGED)]
    top = call(U64_MASK - 0xFFF, 1)
    ends_at_0 = (call(0, 1), top)
    assert list(canonical._with(ends_at_0, 1, call(0, 1))) == [
        (call(0, 1), call(0, 1)),
        (call(PAGE, 1), call(0, 1)),
    ], "a range that ends at 2^64 ends where one at 0 begins"


# Steps of the search ------------------------------------------------------------------------------


def test_operations_go_in_chunks_from_large_to_small() -> None:
    ops = (ONE, TWO, THREE, FOUR)
    found, told = search(lambda ops: {ONE, FOUR} <= set(ops))
    assert found.drop(ops) == (ONE, FOUR)
    assert told.programs == [
        *((ONE, TWO), (THREE, FOUR)),
        *((ONE, TWO, THREE), (ONE, TWO, FOUR), (ONE, FOUR), (FOUR,)),
    ]
    assert told.traced == [(ONE, TWO, FOUR), (ONE, FOUR)], "where something is wrong"
    assert search(never)[0].drop(ops) == ops


def test_without_the_others_a_call_may_have_to_share() -> None:
    private = call(PAGE, 1, PRIVATE)
    assert search(lambda ops: ops == (TWO,))[0].drop((ONE, private)) == (TWO,)
    assert search(lambda ops: ONE not in ops)[0].drop((ONE, private)) == (private,)
    odd = call(PAGE, 1, PRIVATE | 1)
    assert search(lambda ops: ops == (call(PAGE, 1),))[0].drop((ONE, odd)) == (ONE, odd)


def test_without_a_reset_a_call_may_have_to_make_the_other_status() -> None:
    for given, wanted in ((TWO, call(PAGE, 1, PRIVATE)), (call(PAGE, 1, 1), call(PAGE, 1, 17))):
        mirrored, _ = search(lambda ops, wanted=wanted: ops == (wanted,))
        assert mirrored.drop((RESET, given)) == (wanted,)
        assert mirrored.drop((READ, given)) == (READ, given)
    both, _ = search(lambda ops: ops == (ONE, call(PAGE, 1, PRIVATE)))
    assert both.drop((ONE, RESET, TWO)) == (ONE, call(PAGE, 1, PRIVATE)), "only what follows it"
    with_others, _ = search(lambda ops: ops == (READ, call(PAGE, 1, PRIVATE)))
    assert with_others.drop((RESET, READ, TWO)) == (READ, call(PAGE, 1, PRIVATE))


def test_calls_of_pages_become_calls_of_addresses_all_at_once() -> None:
    plain = msgspec.structs.replace(PAGED, has_page=False, region=Region.D, page=0)
    ops = (PAGED, READ, TWO, PAGED)
    assert search(always)[0]._raw(ops) == (plain, READ, TWO, plain)
    assert search(never)[0]._raw(ops) == ops
    found, told = search(always)
    assert found._raw((READ, TWO)) == (READ, TWO)
    assert told.programs == []


def test_calls_before_the_last_one_become_alike() -> None:
    last = call(7 * PAGE, 1, PRIVATE)
    shares = call(7 * PAGE, 1)
    assert search(always)[0]._alike((ONE, TWO, last)) == (ONE, ONE, shares)
    assert search(always)[0]._alike((TWO, ONE, THREE, last)) == (TWO, TWO, TWO, shares)
    for ops in ((ONE, last), (last,), (ONE, PAGED, last), (ONE, READ, last)):
        found, told = search(always)
        assert found._alike(ops) == ops
        assert told.programs == []
    assert search(never)[0]._alike((ONE, TWO, last)) == (ONE, TWO, last)
    found, told = search(always)
    assert found._alike((ONE, ONE, shares)) == (ONE, ONE, shares)
    assert told.programs == [], "they are"


def test_a_program_begins_with_sharing() -> None:
    private = call(0, 1, PRIVATE)
    ops = (READ, private, call(PAGE, 1, 1))
    assert search(always)[0]._mirrored(ops) == (READ, ONE, call(PAGE, 1, PRIVATE | 1))
    assert search(never)[0]._mirrored(ops) == ops
    for ops in ((ONE, private), (READ,), (call(0, 1, 1), private), ()):
        assert search(always)[0]._mirrored(ops) == ops


def test_everything_moves_down_together() -> None:
    paged = [Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), page=page) for page in (3, 5, 0, 2)]
    ops = (call(5 * PAGE + 1, 2), call(7 * PAGE, 1), RESET, *paged[:2])
    calls = (call(1, 2), call(2 * PAGE, 1), RESET)
    assert search(always)[0]._moved(ops) == (*calls, *paged[2:])
    only_calls = lambda ops_: ops_ == (*calls, *paged[:2])  # noqa: E731
    assert search(only_calls)[0]._moved(ops) == (*calls, *paged[:2])
    only_pages = lambda ops_: ops_ == (*ops[:3], *paged[2:])  # noqa: E731
    assert search(only_pages)[0]._moved(ops) == (*ops[:3], *paged[2:])
    assert search(never)[0]._moved(ops) == ops
    for ops in ((ONE, call(PAGE, 1)), (READ,), tuple(paged[2:])):
        found, told = search(always)
        assert found._moved(ops) == ops
        assert told.programs == []


def test_a_search_ends_in_the_simplest_program() -> None:
    def fails(ops: Program) -> bool:
        return any(37 <= op.arguments[2] < 1 << 32 for op in ops if op.kind is OpKind.HYPERCALL)

    found, told = search(fails)
    given = msgspec.structs.replace(call(5 * PAGE, 600, PRIVATE, cpl=3), vcpu=1)
    assert found.minimise((READ, given, RESET)) == (call(0, 37),)
    assert (call(0, 37),) in told.traced
    assert found.probe.header == Header(vcpus=2)


def test_a_program_that_is_the_simplest_one_already() -> None:
    ops = (call(77 * PAGE + 5, 13, 6),)
    found, told = search(never)
    assert found._search(ops, 0) == ops
    assert ops not in told.programs


def test_the_first_value_in_the_order_stands_for_the_defect() -> None:
    kind = Op(OpKind.EARLY_SET_MEMORY_ENCRYPTED, (2 * PAGE, 0), Region.L, 2)
    assert search(always)[0]._search((kind,), 0) == (Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0)),)
    assert search(always)[0]._search((call(PAGE, 9, 3, cpl=3),), 0)[0] == call(0, 0, 3)
    second = search(always)[0]._search((READ, call(PAGE, 9)), 1)
    assert second == (READ, call(0, 0))


# How long it takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_slow", "runs"), [(True, 400), (False, 4000)])
def test_a_search_through_values_ends(is_slow: bool, runs: int) -> None:
    ops = tuple(call(1 << bits, 1 << bits, 1 << bits) for bits in (61, 62))
    found, told = search(never, is_slow)
    for index in (0, 1, 0, 1):
        assert found._search(ops, index) == ops
    tried = told.traced if is_slow else told.programs
    assert len(tried) == len(set(tried)) == runs
    if is_slow:
        assert told.programs == [], "looks at code are no dearer there"


def test_a_program_that_was_tried_costs_nothing_again() -> None:
    found, told = search(never, is_slow=True)
    near = [(call(0, pages),) for pages in range(399)]
    for _ in range(3):
        assert found._first_that_holds(iter(near)) is None
    assert len(told.traced) == 399
    assert found._search((call(PAGE, 9),), 0) == (call(PAGE, 9),)
    assert len(told.traced) == 400


def test_delta_debugging_ends_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk: list[int] = []
    monkeypatch.setattr(
        canonical, "shrink", lambda program, _keeps, limit: shrunk.append(limit) or program
    )
    search(never)[0].minimise((ONE,))
    assert shrunk == [400]


class _Rounds(Canonical):
    """Comes to another program in each round, or to the same."""

    def __init__(self, is_other: bool, left: int) -> None:
        super().__init__(Told(never), SUSPECT)
        self.rounds = 0
        self._is_other = is_other
        self._left = left

    def _search(self, ops: Program, index: int) -> Program:
        self.rounds += 1
        return (call(0, self.rounds),) if self._is_other else ops


def test_rounds_end_where_nothing_changes_or_no_run_is_left() -> None:
    for is_other, left, rounds in ((True, 9, 4), (True, 1, 4), (True, 0, 1), (False, 9, 1)):
        found = _Rounds(is_other, left)
        found.minimise((call(0, 77),))
        assert found.rounds == rounds


# What a candidate has to show ---------------------------------------------------------------------


def test_steps_of_a_migration_stay_and_the_campaign_s_bounds_hold() -> None:
    start = Op(OpKind.MIGRATE_START, (1, 0))
    found, told = search(always)
    assert not found.holds((ONE, start))
    found.probe.allows = lambda ops: ops != (TWO,)
    assert not found.holds((TWO,))
    assert told.programs == []
    assert found.holds((ONE,))
    in_order = Canonical(Told(always), msgspec.structs.replace(SUSPECT, order=(start,)))
    assert in_order.holds((ONE, start))
    assert not in_order.holds((ONE,))


def test_a_program_that_cannot_run_shows_nothing() -> None:
    for is_slow in (True, False):
        found, told = search(always, is_slow)
        told.try_look = lambda ops, traced=False: None
        assert not found.holds((ONE,))


def suspected(*sightings: Sighting, or_none: bool = False, **fields: object) -> Sighting | None:
    suspect = msgspec.structs.replace(SUSPECT, **fields)
    probe = SimpleNamespace(suspicious=lambda one: one.spots)
    if or_none:
        return find_suspect(probe, look(*sightings), suspect, or_none=True)
    return find_suspect(probe, look(*sightings), suspect)


def test_the_symptom_and_the_check_that_saw_it_first() -> None:
    other, own = seen(name="else"), seen()
    assert suspected(other, own) is own
    assert suspected(other) is None
    assert suspected() is None
    assert suspected(own, check="record") is own
    assert suspected(own, check="results") is None
    assert suspected(seen(check="results", name="else"), own, check="record") is None


def test_extents_that_are_known_or_whole() -> None:
    part, whole = seen(effect="the end of the range, 1"), seen(effect="all of the range, 3")
    assert suspected(part, not_effect=part.symptom.effect) is None
    assert suspected(part, whole, not_effect=part.symptom.effect) is whole
    assert suspected(part, not_effect="") is part
    assert suspected(part) is part
    assert suspected(part, whole, is_whole=True) is whole
    assert suspected(part, is_whole=True) is None


def test_suspicious_code_that_was_there_before_some_of_it_and_what_is_needed() -> None:
    none, one, two, other = seen(), seen("a"), seen("a", "b"), seen("c")
    for spots, found in (((), none), (("a",), one), (("a", "b"), two), (("a", "b"), one)):
        assert suspected(found, spots=frozenset(spots)) is found
    assert suspected(one) is None
    assert suspected(none, spots=frozenset("a")) is None
    assert suspected(none, spots=frozenset("a"), or_none=True) is none
    for or_none in (False, True):
        assert suspected(other, spots=frozenset("a"), or_none=or_none) is None
        assert suspected(two, spots=frozenset("a"), or_none=or_none) is None
        assert suspected(one, or_none=or_none) is None
    assert suspected(one, two, spots=frozenset("ab"), needed=frozenset("b")) is two
    assert suspected(one, spots=frozenset("ab"), needed=frozenset("b")) is None


# Fewer lines of code ------------------------------------------------------------------------------

GIVEN, SIMPLER, SIMPLEST = (call(PAGE, 2),), (call(0, 2),), (call(0, 1),)


def narrowed(**shown: tuple[tuple[Op, ...], Sighting]) -> tuple[Program, frozenset[str]]:
    """Where `narrow` comes to from `GIVEN`, which shows the code a and b."""
    suspect = msgspec.structs.replace(SUSPECT, spots=frozenset("ab"))
    looks = {GIVEN: seen("a", "b", effect="own"), **dict(shown.values())}
    told = Told(never)
    traced: list[bool] = []

    def try_look(ops: Program, traced_: bool = False) -> Look:
        traced.append(traced_)
        return look(looks[ops]) if ops in looks else look()

    told.try_look = lambda ops, traced=False: try_look(ops, traced)
    ops, found = canonical.narrow(told, GIVEN, suspect)
    assert all(traced)
    return ops, found.spots


def test_a_neighbour_with_less_code_stands_for_the_defect() -> None:
    assert narrowed() == (GIVEN, frozenset("ab"))
    assert narrowed(one=(SIMPLER, seen("a", "b"))) == (GIVEN, frozenset("ab"))
    assert narrowed(one=(SIMPLER, seen("a"))) == (SIMPLER, frozenset("a"))
    harder = (call(PAGE, 3),)
    assert narrowed(one=(harder, seen("a", effect="other"))) == (harder, frozenset("a"))


def test_a_neighbour_of_a_neighbour_may_have_less_still() -> None:
    wide = msgspec.structs.replace(SUSPECT, spots=frozenset("abc"))
    looks = {GIVEN: seen(*"abc"), SIMPLER: seen(*"ab"), SIMPLEST: seen("a")}
    told = Told(never)
    told.try_look = lambda ops, traced=False: look(looks[ops]) if ops in looks else look()
    ops, found = canonical.narrow(told, GIVEN, wide)
    assert (ops, found.spots) == (SIMPLEST, frozenset("a"))


def test_to_no_code_at_all_only_by_a_simpler_program_of_the_same_extent() -> None:
    assert narrowed(one=(SIMPLER, seen(effect="own"))) == (SIMPLER, frozenset())
    assert narrowed(one=(SIMPLER, seen(effect="other"))) == (GIVEN, frozenset("ab"))
    assert narrowed(one=((call(PAGE, 3),), seen(effect="own"))) == (GIVEN, frozenset("ab"))
    changed = {"one": (SIMPLER, seen("a", effect="new")), "two": (SIMPLEST, seen(effect="new"))}
    assert narrowed(**changed) == (SIMPLEST, frozenset()), "that of the last program"
