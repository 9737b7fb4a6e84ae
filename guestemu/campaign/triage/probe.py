# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs programs, and finds what went wrong in them and which host code only wrong runs execute.

The cover is the byte code that ran in operations that were convincingly right, for each situation
apart: a call that is refused anyway clears nothing that an accepted one executes. It starts with a
fixed battery of calls and grows by the neighbours of programs that are looked at. What a wrong
operation executed beyond it is *suspicious*: for a defect behind a condition of its own that is its
place; for one in an expression that every call passes it is empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice, product
from typing import Final, TypeAlias

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SIZE, U32_MASK, U64_MASK
from guestemu.abi.errors import EngineError, GuestemuError, ProgramTimeError, TimeUp
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage.hostcode import ByteCodeTrace, Spots, traced_exits
from guestemu.campaign.triage.lost_bits import ADDRESS_WIDTHS, COUNT_WIDTHS
from guestemu.campaign.triage.rules import ACCEPTED, LATE_RULES
from guestemu.campaign.triage.symptom import (
    Symptom,
    failure_of,
    is_convincing,
    is_of_bits,
    is_of_whole_range,
    of_bits,
    situation_of,
    symptom_of,
)
from guestemu.checks.base import OpView, Violation
from guestemu.events.exits import AnsweredExit
from guestemu.guest.base import CallOutcome
from guestemu.host.native.host import NativeHost
from guestemu.host.plugin_guard import PluginHost
from guestemu.host.userspace.base import VmStopped
from guestemu.machine.exits import BudgetExhausted
from guestemu.machine.watchdog import Watchdog
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.program.program import Header
from guestemu.program.validity import problem_of
from guestemu.program.values import BOUNDARIES
from guestemu.runner.testbed import HOST_FAILED, Testbed, belief_of

_MODELS: Final = "guestemu.host."
_NOTHING: Final[Spots] = frozenset()
_ENCRYPTED: Final = (MAP_GPA_RANGE_ENCRYPTED, MAP_GPA_RANGE_ENCRYPTED | 1)
_SLOW_NEIGHBOURS: Final = 40
_REMEMBERED: Final = 256
"""Runs; each keeps a bit for each frame of the guest."""

_MANY_FAILURES: Final = 16
_COMMON: Final = 8
"""Of the battery's accepted calls that go wrong more than one in so many do it in a common way."""

_LOWER: Final = 0xFFFF
_LOWER_COUNT: Final = (_LOWER, 0xFFF, 0xFF)
_LOWER_ADDRESS: Final = (_LOWER, U32_MASK, (1 << 40) - 1)
"""Bits of a page count and of an address, exchanged to see whether those above them count."""

_SMALL: Final = (0, 1, 2, 3, 4, 16)
_END_WIDTHS: Final = (31, 32, 44, 48, 52)
_STEPS: Final = (("address", 1, PAGE_SIZE), ("page count", 2, 1))
"""Registers of a range, their places among a hypercall's arguments, and what takes one to a value
nearby."""

_MARKED: Final = 3
"""Pages at the end of a range: what a host gets wrong at one place alone is told from a cut."""

_OF_RANGES: Final = frozenset({"hypercall: record", of_bits("page count").name})


_Cleared: TypeAlias = tuple[tuple[str, Spots], ...]


class Sighting(msgspec.Struct, frozen=True):
    """One violation in one run: what it looks like, the situation (`situation_of`) of its
    operation, and the host code that this executed (empty without tracing). Where a register seems
    to be cut, `plain` is the sighting without that."""

    violation: Violation
    symptom: Symptom
    situation: str
    spots: Spots
    plain: Sighting | None = None


class Look(msgspec.Struct, frozen=True):
    """One run: its sightings in order, the exits of each operation, what the host believed at the
    end, and whether an operation used up its budget."""

    sightings: tuple[Sighting, ...]
    exits: tuple[tuple[AnsweredExit, ...], ...]
    private: bitarray
    is_ready: bool
    is_used_up: bool = False

    @property
    def first(self) -> tuple[Sighting, ...]:
        """The sightings of the first operation that has some: a host that was wrong once may be
        wrong afterwards for that reason."""
        if not self.sightings or self.sightings[-1].violation.op == self.sightings[0].violation.op:
            return self.sightings
        first = self.sightings[0].violation.op
        return tuple(one for one in self.sightings if one.violation.op == first)

    @property
    def violations(self) -> list[Violation]:
        """All violations."""
        return [sighting.violation for sighting in self.sightings]


class Probe:
    """Looks at programs on `testbed`, whose observer it replaces meanwhile. `heartbeat` is called
    before every run, and `bound` bounds the time of each. `is_slow`: a run takes milliseconds.
    `allows` tells which programs a search may come to: those that the campaign itself would run.
    Violations of a check in `ignored` are none. `sees_code`: the host's code is byte code."""

    def __init__(
        self, testbed: Testbed, header: Header, heartbeat: Callable[[], None] | None = None
    ) -> None:
        self.header = header
        self.heartbeat = heartbeat
        self.bound: Watchdog | None = None
        self.allows: Callable[[tuple[Op, ...]], bool] = lambda ops: True
        self.ignored: frozenset[str] = frozenset()
        self.testbed = testbed
        host = testbed.host
        is_model = type(host).__module__.startswith(_MODELS) and not isinstance(
            host, PluginHost | NativeHost
        )
        self.code = ByteCodeTrace(is_model)
        self.sees_code = not isinstance(host, NativeHost)
        self.runs = 0
        self.is_slow = len(testbed.checks) == 1 or not testbed.guest.name.startswith("snippet:")
        self._cover: dict[str, Spots] = {}
        self._base: dict[str, Spots] = {}
        self._background: dict[Symptom, Spots] = {}
        self._has_battery = False
        self._is_comparing = False
        self._runs_left: int | None = None
        self._deadline: float | None = None
        self._seen: dict[tuple[tuple[Op, ...], bool], tuple[Look, _Cleared]] = {}

    def look(self, ops: tuple[Op, ...], traced: bool = False) -> Look:
        """Runs `ops`; with `traced` the sightings have host code, and `cover` may grow. Where runs
        are slow the last few hundred are remembered: a search comes back to the same programs."""
        if self.heartbeat is not None:
            self.heartbeat()
        is_kept = self.is_slow and not any(op.kind is OpKind.HYPERCALL for op in ops)
        look, cleared = self._recall(ops, traced) if is_kept else self._run(ops, traced)
        for situation, spots in cleared:
            self._cover[situation] = self._cover.get(situation, _NOTHING) | spots
        return look

    def _recall(self, ops: tuple[Op, ...], traced: bool) -> tuple[Look, _Cleared]:
        """What `_run` returned before, or returns now; the runs longest unused are forgotten."""
        key = (ops, traced)
        seen = self._seen.pop(key) if key in self._seen else self._run(ops, traced)
        self._seen[key] = seen
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return seen

    def _run(self, ops: tuple[Op, ...], traced: bool) -> tuple[Look, _Cleared]:
        """What a run shows, and the host code that was right in it, by situation."""
        testbed = self.testbed
        cleared: list[tuple[str, Spots]] = []
        violations: list[Violation] = []
        sightings: list[Sighting] = []
        exits: list[tuple[AnsweredExit, ...]] = []
        outcomes: list[object] = []
        code = self.code

        def observe(view: OpView) -> None:
            outcomes.append(view.outcome)
            spots = code.take() if traced else _NOTHING
            exits.append(tuple(view.exits))
            if self.ignored:
                violations[:] = [v for v in violations if v.check not in self.ignored]
            new = violations[len(sightings) :]
            if new:
                situation = situation_of(view.exits)
                sightings.extend(_sighting(view, v, situation, spots) for v in new)
            elif spots and not violations and is_convincing(view):
                cleared.append((situation_of(view.exits), spots))

        host = testbed.host
        observer, testbed.observe = testbed.observe, observe
        self.runs += 1
        bound = self.bound
        if isinstance(host, NativeHost):
            host.renew()
        with host.as_new() if isinstance(host, PluginHost) else nullcontext():
            if bound is not None:
                bound.renew()
            try:
                self._step_through(ops, violations, traced)
            finally:
                testbed.observe = observer
                private, is_ready = belief_of(host)
                if bound is not None:
                    bound.rest()
        sightings += [  # of a host that failed before an operation began
            Sighting(v, Symptom(failure_of(v.message)), "", _NOTHING)
            for v in violations[len(sightings) :]
        ]
        is_hosts = any(found.check == HOST_FAILED for found in violations)
        if bound is not None and bound.is_up and not is_hosts:
            raise ProgramTimeError(bound.text)
        if not self._is_comparing:
            sightings = [self._name(ops, sighting, exits) for sighting in sightings]
        is_used_up = any(map(_is_used_up, outcomes))
        return Look(tuple(sightings), tuple(exits), private, is_ready, is_used_up), tuple(cleared)

    def _name(
        self, ops: tuple[Op, ...], sighting: Sighting, exits: Sequence[Sequence[AnsweredExit]]
    ) -> Sighting:
        """`sighting`, named by what other values of the operation's arguments show."""
        sighting = self._by_half(ops, self._by_neighbour(ops, sighting), exits)
        return self._by_end(ops, self._by_attributes(ops, self._by_bits(ops, sighting)))

    def _step_through(self, ops: tuple[Op, ...], violations: list[Violation], traced: bool) -> None:
        """Runs `ops` under the observer that stands in the testbed."""
        testbed, code = self.testbed, self.code
        if not testbed.try_out(ops, is_new=True):
            raise EngineError("the process that runs programs first died of this one")
        testbed.reset()
        hooks = testbed.guest.machine.hooks
        handler = hooks.handler
        if traced and handler is not None:
            code.take()
            hooks.handler = traced_exits(code, handler)
        try:
            for index, op in enumerate(ops):
                if traced and SPECS[op.kind].by_host:
                    code.start()
                testbed.step(index, op, None, violations)
        except VmStopped:
            hooks.clear()
        except TimeUp as error:
            hooks.clear()
            raise ProgramTimeError(str(error)) from error
        finally:
            hooks.handler = handler
            code.stop()

    def _by_bits(self, ops: tuple[Op, ...], sighting: Sighting) -> Sighting:
        """`sighting`, named by the register that may have lost its upper bits if a range whose
        lower bits differ shows that it did."""
        registers, index = sighting.symptom.register, sighting.violation.op
        if not registers:
            return sighting
        nr, gpa, pages, attributes, *rest = ops[index].arguments
        told = dict.fromkeys(
            (attributes ^ MAP_GPA_RANGE_ENCRYPTED, attributes, 0, MAP_GPA_RANGE_ENCRYPTED)
        )  # also without other bits, which the host may take for a status
        for register, more, status in product(registers.split(","), (0, 3, 70), told):
            named = of_bits(register)
            if register != "address":
                places = [(0, pages & ~low | more) for low in _LOWER_COUNT] if more else []
            elif more:
                places = [(gpa & ~low | more * PAGE_SIZE, pages) for low in _LOWER_ADDRESS]
            else:
                places = [(gpa, pages)]
            for place in places:
                arguments = (nr, *place, status, *rest)
                other = msgspec.structs.replace(ops[index], arguments=arguments)
                if self._shows_cut((*ops[:index], other, *ops[index + 1 :]), named):
                    return msgspec.structs.replace(sighting, symptom=named, spots=_NOTHING)
        plain = msgspec.structs.replace(sighting.symptom, register="")
        return msgspec.structs.replace(sighting, symptom=plain)

    def _by_neighbour(self, ops: tuple[Op, ...], sighting: Sighting) -> Sighting:
        """`sighting`, without a cut of a count or an address that a neighbouring value does not
        show: a host that takes four pages for many takes 2^32 + 4 for four and 2^32 + 5 as well."""
        index, plain = sighting.violation.op, sighting.plain
        step = next((by for name, *by in _STEPS if sighting.symptom == of_bits(name)), None)
        if plain is None or step is None:
            return sighting
        position, by = step
        op, counts = ops[index], [ops[index].arguments[2]]
        is_count = sighting.symptom == of_bits("page count")
        if not is_count:
            counts.append(1)  # of many pages a neighbour may wrap, which is refused
        for is_marked in (True, False):
            is_taken = is_shown = False
            for pages, change in product(counts, (by, -by)):
                arguments = list(with_pages(op, pages).arguments)
                arguments[position] = arguments[position] + change & U64_MASK
                other = msgspec.structs.replace(op, arguments=tuple(arguments))
                marks = self._marks(other, is_count) if is_marked else ()
                look = self._compare((*ops[:index], *marks, other, *ops[index + 1 :]))
                if look is None:
                    continue
                place = index + len(marks)
                found = [one.symptom for one in look.sightings if one.violation.op == place]
                if sighting.symptom in found:
                    is_shown = True
                elif any(not symptom.register for symptom in found):
                    return plain  # it is wrong in another way
                taken = look.exits[place:][:1]
                is_taken |= any(record.ret == 0 for records in taken for record in records)
            if is_shown:
                return sighting
            if is_taken:
                break
        return plain

    def _marks(self, op: Op, is_count: bool) -> tuple[Op, ...]:
        """Calls that give pages the other status, for each width to which the count or the address
        of `op` may have been cut: the last page of the range that is left and the first behind it,
        or its first ones. Without them many values that change all pages which differ may be the
        one."""
        nr, gpa, pages, attributes, *rest = op.arguments
        frames = self.testbed.guest.machine.config.frames
        if is_count:
            cut = [pages & (1 << width) - 1 for width in COUNT_WIDTHS]
            lasts = [max(few, 1) - 1 for few in cut if few < min(pages, frames)]
            starts = [gpa + last * PAGE_SIZE & U64_MASK for last in lasts]
        else:
            cut = [gpa & (1 << width) - 1 for width in ADDRESS_WIDTHS]
            starts = [few for few in cut if few != gpa and few < frames * PAGE_SIZE]
        places = [start + more * PAGE_SIZE for start in sorted(starts) for more in range(_MARKED)]
        one = msgspec.structs.replace(op, mode=Mode.LONG64, cpl=0)
        status = attributes & MAP_GPA_RANGE_ENCRYPTED ^ MAP_GPA_RANGE_ENCRYPTED
        return tuple(
            msgspec.structs.replace(one, arguments=(nr, place & U64_MASK, 1, status, *rest))
            for place in dict.fromkeys(places)
        )

    def _by_attributes(self, ops: tuple[Op, ...], sighting: Sighting) -> Sighting:
        """`sighting` without suspicious code where the host takes the status from other bits than
        bit 4: the code that ran is that of the other status, and not to blame. Seen by a range that
        is as told already and is changed, unless the other bits are 0 or bit 4 is the other way.
        """
        index, op = sighting.violation.op, ops[sighting.violation.op]
        if not sighting.spots or not is_of_whole_range(sighting.symptom):
            return sighting
        if op.kind is not OpKind.HYPERCALL or not op.arguments[3] & ~MAP_GPA_RANGE_ENCRYPTED:
            return sighting
        before = ops[:index]
        told = op.arguments[3] & MAP_GPA_RANGE_ENCRYPTED
        plain = with_attributes(op, told)
        opposite = with_attributes(op, op.arguments[3] ^ MAP_GPA_RANGE_ENCRYPTED)
        if (
            self._shows((*before, plain, op), sighting.symptom)
            and not self._shows((*before, plain), sighting.symptom)
            and not self._shows((*before, opposite), sighting.symptom)
        ):
            return msgspec.structs.replace(sighting, spots=_NOTHING)
        return sighting

    def _by_end(self, ops: tuple[Op, ...], sighting: Sighting) -> Sighting:
        """`sighting` named by the end of the range, where a host keeps it in too few bits: the
        longest count that fits is right from address 0 on and not from the next page on, where one
        less is."""
        op = ops[sighting.violation.op]
        if op.kind is not OpKind.HYPERCALL or sighting.symptom.name not in _OF_RANGES:
            return sighting
        mask = U64_MASK if op.mode is Mode.LONG64 else U32_MASK
        gpa, pages = (value & mask for value in op.arguments[1:3])
        for width in _END_WIDTHS:
            most = (1 << width) - 1
            if not op.has_page and most < gpa // PAGE_SIZE + pages <= U64_MASK:
                fits = _call(KVM_HC_MAP_GPA_RANGE, 0, most, 0)
                beside = _call(KVM_HC_MAP_GPA_RANGE, PAGE_SIZE, most - 1, 0)
                leaves = _call(KVM_HC_MAP_GPA_RANGE, PAGE_SIZE, most, 0)
                if self._is_recorded(leaves) is False and all(
                    self._is_recorded(one) for one in (fits, beside)
                ):
                    named = of_bits("end of the range")
                    return msgspec.structs.replace(sighting, symptom=named, spots=_NOTHING)
        return sighting

    def _is_recorded(self, op: Op) -> bool | None:
        """Whether a call that is to be accepted is, or None where it cannot run."""
        look = self._compare((op,))
        return None if look is None else not look.sightings

    def _shows(self, ops: tuple[Op, ...], symptom: Symptom) -> bool:
        """Whether a run of `ops` has exactly this symptom, without a look at registers."""
        look = self._compare(ops)
        return look is not None and any(seen.symptom == symptom for seen in look.sightings)

    def _shows_cut(self, ops: tuple[Op, ...], named: Symptom) -> bool:
        """Whether a run of `ops` shows a register that was cut, and its neighbours as well."""
        look = self._compare(ops)
        return look is not None and any(
            seen.symptom == named and self._by_neighbour(ops, seen).symptom == named
            for seen in look.sightings
        )

    def _compare(self, ops: tuple[Op, ...]) -> Look | None:
        """A run of `ops`, without a look at registers; None where they cannot run."""
        self._is_comparing = True
        try:
            return self.try_look(ops)
        finally:
            self._is_comparing = False

    def _by_half(
        self, ops: tuple[Op, ...], sighting: Sighting, exits: Sequence[Sequence[AnsweredExit]]
    ) -> Sighting:
        """`sighting` named by the register whose upper half is to blame, if one is: outside 64-bit
        code upper halves count for nothing (K3-c), so what is gone without them, or has suspicious
        code of its own, is their doing."""
        index, name = sighting.violation.op, sighting.symptom.name
        op = ops[index]
        if op.kind is not OpKind.HYPERCALL or len(exits[index]) != 1 or exits[index][0].is_64bit:
            return sighting
        for words, candidate in lower_halves(op):
            self._is_comparing = True
            try:
                narrow = (*ops[:index], candidate, *ops[index + 1 :])
                other = self.try_look(narrow, traced=bool(sighting.spots))
            finally:
                self._is_comparing = False
            # As it shows, also where a look at registers would say that one was cut.
            seen = [] if other is None else [one.plain or one for one in other.sightings]
            if other is not None and not any(
                (name, index) == (one.symptom.name, one.violation.op)
                and self.suspicious(one) <= sighting.spots
                for one in (*other.sightings, *seen)
            ):
                effect = sighting.symptom.effect
                symptom = Symptom(f"hypercall: {words}", effect)
                return msgspec.structs.replace(sighting, symptom=symptom)
        return sighting

    def try_look(self, ops: tuple[Op, ...], traced: bool = False) -> Look | None:
        """`look`, or None for a program that this testbed cannot run, and once the bound of this
        search is reached."""
        if self.is_over:
            return None
        if any(problem_of(op, self.header) is not None for op in ops):
            return None
        if self.is_slow and not self.allows(ops):  # a real kernel may take minutes over those
            return None
        try:
            return self.look(ops, traced)
        except (GuestemuError, NotImplementedError):
            return None

    def limit(self, runs: int | None, deadline: float | None = None) -> None:
        """A search may take `runs` more runs and goes on until `deadline` (`time.monotonic`);
        None: without end."""
        self._runs_left = None if runs is None else self.runs + runs
        self._deadline = deadline

    def shorten(self, runs: int) -> None:
        """At most `runs` more runs, fewer if the bound is nearer."""
        limit = self.runs + runs
        self._runs_left = limit if self._runs_left is None else min(limit, self._runs_left)

    def look_again(self, ops: tuple[Op, ...]) -> Look:
        """`look`, traced, whatever the bound: at a program that was looked at before."""
        return self.look(ops, traced=True)

    @property
    def is_over(self) -> bool:
        """Whether the bound is reached."""
        return self.is_late or (self._runs_left is not None and self.runs >= self._runs_left)

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def is_wrong_throughout(self) -> bool:
        """Whether every accepted call was wrong so far, most of them in a few common ways."""
        return bool(self._background) and ACCEPTED not in self._cover

    def suspicious(self, sighting: Sighting) -> Spots:
        """The host code of `sighting` that no convincing run has executed so far.

        What concerns a range is cleared by accepted calls only. A call that was to be refused
        before may have come to the code of any other rule, so that whatever was right anywhere is
        not to blame. Where no accepted call was right, all go wrong in a few ways, and no line is
        told from the others by those: one of another defect is by what it adds to them.
        """
        spots, own = sighting.spots, sighting.situation
        if own == ACCEPTED and ACCEPTED not in self._cover:
            if not self.is_wrong_throughout or sighting.symptom in self._background:
                return _NOTHING
            spots = spots.difference(*self._background.values())
        for situation, cover in self._cover.items():
            if situation == ACCEPTED or own not in LATE_RULES:
                spots -= cover
        return spots

    def run_battery(self) -> None:
        """Fills `cover` with the fixed battery, once. It ends early on a host that often does not
        return."""
        if self._has_battery:
            return
        self._has_battery = True
        failures = 0
        wrong: dict[Symptom, list[Spots]] = {}
        for ops in _battery(self.testbed.guest.machine.config.frames):
            look = self.try_look(ops, traced=True)
            if look is None:
                continue
            for sighting in look.first[:1]:
                if sighting.situation == ACCEPTED:
                    wrong.setdefault(sighting.symptom, []).append(sighting.spots)
            if any(v.check == HOST_FAILED for v in look.violations):
                failures += 1
                if failures == _MANY_FAILURES:  # each may cost the time of a hang
                    break
        self._base = dict(self._cover)
        least = sum(map(len, wrong.values())) // _COMMON
        self._background = {
            symptom: _NOTHING.union(*seen) for symptom, seen in wrong.items() if len(seen) > least
        }

    def suspicious_beside(self, ops: tuple[Op, ...], sighting: Sighting) -> Spots:
        """What is suspicious of a sighting in `ops` after what differs from them in one field and
        is right was added to `cover`. Where runs are slow that is done only if it can matter."""
        if not self.is_slow or self.suspicious(sighting):
            self._run_neighbours(ops, sighting.violation.op)
        return self.suspicious(sighting)

    def _run_neighbours(self, ops: tuple[Op, ...], index: int) -> None:
        """Runs them; of an argument that makes the guest use up its budget no larger value."""
        own = ops[index].arguments
        most = [U64_MASK] * len(own)
        for op in islice(neighbours(ops[index]), _SLOW_NEIGHBOURS if self.is_slow else None):
            changed = [place for place, value in enumerate(op.arguments) if value != own[place]]
            if any(op.arguments[place] > most[place] for place in changed):
                continue
            look = self.try_look((*ops[:index], op), traced=True)
            if look is not None and look.is_used_up:
                for place in changed:
                    most[place] = op.arguments[place]

    def fresh(self) -> Probe:
        """A probe of the same testbed that knows the battery only, so that what it finds does not
        depend on what this one saw."""
        self.run_battery()
        other = Probe(self.testbed, self.header, self.heartbeat)
        other._runs_left = self._runs_left and other.runs + self._runs_left - self.runs
        other._deadline = self._deadline
        other.allows = self.allows
        other.bound = self.bound
        other.ignored = self.ignored
        other.code = self.code
        other._cover = dict(self._base)
        other._base = self._base
        other._background = self._background
        other._has_battery = True
        other._seen = self._seen
        return other


def _sighting(view: OpView, violation: Violation, situation: str, spots: Spots) -> Sighting:
    """A violation as it shows. Where a register was cut the code that ran is that of another call,
    and not to blame."""
    symptom = symptom_of(view, violation)
    if not is_of_bits(symptom.name):
        return Sighting(violation, symptom, situation, spots)
    plain = symptom_of(view, violation, looks_at_bits=False)
    as_seen = Sighting(violation, plain, situation, spots)
    return Sighting(violation, symptom, situation, _NOTHING, plain=as_seen)


def _is_used_up(outcome: object) -> bool:
    return isinstance(outcome, CallOutcome) and isinstance(outcome.end, BudgetExhausted)


def with_attributes(op: Op, attributes: int) -> Op:
    """A raw hypercall with other attributes."""
    arguments = (*op.arguments[:3], attributes, *op.arguments[4:])
    return msgspec.structs.replace(op, arguments=arguments)


def with_pages(op: Op, pages: int) -> Op:
    """A raw hypercall with another page count."""
    arguments = (*op.arguments[:2], pages, *op.arguments[3:])
    return msgspec.structs.replace(op, arguments=arguments)


def lower_halves(op: Op) -> Iterator[tuple[str, Op]]:
    """A raw hypercall without the upper half of RAX, then of any register, where it has one; each
    with words for what was cleared."""
    nr, *arguments = op.arguments
    narrow = [value & U32_MASK for value in arguments]
    for words, number, others in (
        ("upper half of RAX", nr & U32_MASK, arguments),
        ("upper halves of arguments", nr & U32_MASK, narrow),
    ):
        candidate = msgspec.structs.replace(op, arguments=(number, *others))
        if candidate != op:
            yield words, candidate


def neighbours(op: Op) -> Iterator[Op]:
    """`op` with one field changed to values worth trying."""
    replace = msgspec.structs.replace
    for position, argument in enumerate(SPECS[op.kind].arguments):
        values = (*_SMALL, *BOUNDARIES.get(argument.sort, ()))
        for value in dict.fromkeys(values):
            if value != op.arguments[position]:
                arguments = (*op.arguments[:position], value, *op.arguments[position + 1 :])
                yield replace(op, arguments=arguments)
    if SPECS[op.kind].has_mode:
        for mode in Mode:
            if mode is not op.mode:
                yield replace(op, mode=mode, cpl=0)
        yield replace(op, cpl=0 if op.cpl else 3)


def _call(nr: int, gpa: int, pages: int, attributes: int) -> Op:
    return Op(OpKind.HYPERCALL, (nr, gpa, pages, attributes, 0))


def _layouts(frames: int) -> Iterator[tuple[Op, ...]]:
    """Accepted calls whose pages all change: ranges that meet words, halves and ends of `frames`,
    and sequences that put ranges beside and into each other."""
    half = frames // 2
    ranges = (
        *((0, frames), (half - 1, 2), (half, frames - half), (half - 3, 3), (half, 1)),
        *((frames - 1, 1), (frames - 65, 65), (frames // 4, half)),
        *((0, 64), (60, 4), (60, 8), (63, 2), (64, 1), (1, 190), (100, 77), (512, 1024)),
    )
    private = MAP_GPA_RANGE_ENCRYPTED

    def share(first: int, pages: int, attributes: int = 0) -> Op:
        return _call(KVM_HC_MAP_GPA_RANGE, first * PAGE_SIZE, pages, attributes)

    for first, pages in ranges:
        if first >= 0 and first + pages <= frames:
            yield (share(first, pages), share(first, pages, private))
            yield (share(first, pages), share(first, pages // 2, private))
    for parts in ((8, 10, 6), (6, 8, 10), (10, 8, 6), (2, 20, 40), (40, 2, 20)):
        calls = tuple(share(first, 2) for first in parts)
        yield (*calls, share(parts[0], 2, private), share(parts[0], 1))
        yield (*calls, share(parts[2] + 1, 1, private))
    yield (share(8, 9), share(10, 2, private), share(14, 3, private), share(8, 1, private))


def _battery(frames: int) -> Iterator[tuple[Op, ...]]:
    """Calls that a host meets all the time, right and wrong ones."""
    yield from _layouts(frames)
    number = KVM_HC_MAP_GPA_RANGE
    sizes = (1, 2, 3, 5, 512)
    for gpa in (0, PAGE_SIZE, 5 * PAGE_SIZE, 1 << 21):
        for pages in sizes:
            share = _call(number, gpa, pages, 0)
            for attributes in _ENCRYPTED:
                yield (share, _call(number, gpa, pages, attributes))
    refused = (
        *(_call(nr, 0, 1, 0) for nr in (0, 5, 14, 99)),
        _call(number, 9, 1, 0),
        _call(number, PAGE_SIZE, 0, 0),
        _call(number, (1 << 52) - PAGE_SIZE << 12, 1 << 60, 0),
    )
    for call in (_call(number, PAGE_SIZE, 1, 0), *refused):
        yield (call,)
        for mode in (Mode.COMPAT32, Mode.PROT32, Mode.REAL16):
            yield (msgspec.structs.replace(call, mode=mode),)
        yield (msgspec.structs.replace(call, cpl=3),)
    msr = MSR_KVM_MIGRATION_CONTROL
    read, on, off = (
        Op(OpKind.RDMSR, (msr,)),
        Op(OpKind.WRMSR, (msr, 1)),
        Op(OpKind.WRMSR, (msr, 0)),
    )
    yield (read,)
    yield (on, read, off, read)
    yield (Op(OpKind.WRMSR, (msr, 1 << 63)),)
    yield (Op(OpKind.WRMSR, (msr + 0x100, 1)),)
    yield (Op(OpKind.RDMSR, (msr + 0x100,)),)
