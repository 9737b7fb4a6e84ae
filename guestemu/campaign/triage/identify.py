# SPDX-License-Identifier: GPL-2.0-or-later
"""From a sighting to a finding: its canonical program, its key, the host code that is suspected."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, U64_MASK
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage.canonical import (
    Canonical,
    Suspect,
    around,
    around_twice,
    find_suspect,
    is_simpler_program,
    narrow,
    order_of,
    plainer,
)
from guestemu.campaign.triage.hostcode import Spots
from guestemu.campaign.triage.lower import is_guest_only, lower
from guestemu.campaign.triage.probe import Look, Probe, Sighting
from guestemu.campaign.triage.symptom import RECORD, Symptom, is_of_bits, is_of_whole_range
from guestemu.checks.base import Violation
from guestemu.program.ops import SPECS, Argument, Instruction, Op, OpKind
from guestemu.program.program import Expectation, Header, Program
from guestemu.program.validity import takes_page
from guestemu.runner.testbed import HOST_FAILED

_KEY_DIGITS: Final = 8
_GPA: Final = re.compile(r"\bGPA (0x[0-9a-f]+)")
_NAMED: Final = frozenset({Argument.HYPERCALL_NUMBER, Argument.MSR})
_LATCH: Final = "migration-control"
_SHORT: Final = 0xFF
_FAILURE_RUNS: Final = 16
_COUNTED: Final = frozenset({"1", "2"})
"""Numbers of wrong frames that an effect has as they are; larger ones are "3"."""

_PRECISE: Final = 4
"""Suspected source lines up to which they are taken for the defect itself."""


class Finding(msgspec.Struct, frozen=True):
    """One defect: `key` CHECK-OPKIND-HASH (a file name), its canonical program, the violation that
    stands for it and all that the program has, what they look like without their numbers, and
    the host's source lines ("FILE:LINE: text") that only wrong runs execute (none where the
    guest is wrong, or where the defect is in an expression that every run passes)."""

    key: str
    symptom: str
    ops: tuple[Op, ...]
    violation: Violation
    violations: tuple[Violation, ...]
    places: tuple[str, ...]
    spots: Spots
    effect: str

    def program(self, header: Header) -> Program:
        """The program under `header` with what a run of it shows."""
        expected = dict.fromkeys(Expectation("violation", v.check, v.op) for v in self.violations)
        return Program(header, self.ops, tuple(expected))


def _argument_class(sort: Argument, value: int, default: int) -> str:
    """Defaults, what names something, and sizes by their number of bytes."""
    if value == default:
        return "d"
    if sort in _NAMED and value <= _SHORT:
        return f"={value}"
    return str(value.bit_length() + 7 >> 3)


def _op_shape(op: Op) -> str:
    spec = SPECS[op.kind]
    words = [spec.name]
    words += (
        _argument_class(argument.sort, value, argument.default)
        for argument, value in zip(spec.arguments, op.arguments, strict=True)
    )
    if op.mode is not Mode.LONG64:
        words.append(op.mode.name)
    if op.cpl:
        words.append("cpl")
    if op.instruction is not Instruction.VMMCALL:
        words.append(op.instruction.name)
    if takes_page(op):
        words.append(op.region.name)
    return " ".join(words)


def shape(ops: tuple[Op, ...]) -> str:
    """A program without its values: kinds of ops, which arguments differ from their defaults and
    how many bytes long they are, mode, privilege, region."""
    return "; ".join(map(_op_shape, ops))


def finding_key(
    violation: Violation, symptom: str, ops: tuple[Op, ...], where: tuple[str, ...]
) -> str:
    """CHECK-OPKIND-HASH, a file name. The hash is of `where` alone if that has few places, because
    one line may break several rules; else of the symptom, the shape of the canonical program and
    `where`: the host, then the places of the suspected code (`HostCode.anchors`). Of a host that
    fails, or cuts a register, the symptom says it all, and of the latch of MIGRATION_CONTROL where
    no code is suspected: a wrong 0 and a wrong 1 take programs of two shapes."""
    is_latch = violation.check == _LATCH and len(where) == 1
    if violation.check == HOST_FAILED or is_of_bits(symptom) or is_latch:
        words: tuple[str, ...] = (where[0], symptom)
    elif 1 < len(where) <= _PRECISE + 1:
        words = where
    else:
        words = (symptom, shape(ops), *where)
    text = "\n".join(words)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]
    return f"{violation.check}-{SPECS[ops[violation.op].kind].name}-{digest}"


def host_name(spec: str) -> str:
    """A host as keys have it: without the directory of its file."""
    return spec.rpartition("/")[2]


def digest_of(key: str) -> str:
    """The part of a key that is the same for every way a finding shows."""
    return key.rpartition("-")[2]


class Case(msgspec.Struct, frozen=True):
    """One thing that went wrong in a program."""

    ops: tuple[Op, ...]
    sighting: Sighting


def cases_of(probe: Probe, ops: tuple[Op, ...], look: Look) -> list[Case]:
    """What went wrong in a run, the host's errors brought down to raw exits where they show there,
    one case for each symptom with its code."""
    below = None
    if not all(is_guest_only(s.violation.check, s.violation.message) for s in look.first):
        below = lower(probe, Program(probe.header, ops), look)
    found: dict[tuple[str, Spots], Case] = {}
    for sighting in look.first:
        violation = sighting.violation
        if below is not None and not is_guest_only(violation.check, violation.message):
            continue
        if _is_of_a_refusal(look, sighting):
            continue
        found.setdefault((sighting.symptom.name, probe.suspicious(sighting)), Case(ops, sighting))
    if below is not None:
        raw, look = below
        for sighting in look.first:
            if _is_of_a_refusal(look, sighting):
                continue
            found.setdefault(
                (sighting.symptom.name, probe.suspicious(sighting)),
                Case(raw, sighting),
            )
    return list(found.values())


def _is_of_a_refusal(look: Look, sighting: Sighting) -> bool:
    """Whether the record is wrong only because the same call was refused against the contract: what
    a host records of it has no right value."""
    index = sighting.violation.op
    is_answered = any(
        (other.violation.check, other.violation.op) == ("results", index) for other in look.first
    )
    return sighting.symptom.name == RECORD and is_answered and all(_answers(look, index))


def identify(probe: Probe, case: Case, known: Spots = frozenset()) -> list[Finding]:
    """The findings behind a case: one, more where others hide behind the first. One that no search
    ends in stands with the program as it is.

    Another one is taken for real when a neighbour of the case looks the same without executing the
    suspicious code of the first; or when the case executed suspicious code that neither the first
    nor `known` findings execute, and its extent was another.
    """
    if case.sighting.violation.check == HOST_FAILED:
        return [_failure(probe, case)]
    case = _of_one_page(probe, case)
    return _search(probe, case, known) or [as_it_is(probe, case.ops, case.sighting)]


def _of_one_page(probe: Probe, case: Case) -> Case:
    """The case of a call for one page of the range that is recorded wrong as well, or `case`. Where
    no code can be suspected, findings are told apart by their programs, and a long range over the
    place that a host gets wrong is another program than the place."""
    sighting, index = case.sighting, case.sighting.violation.op
    op = case.ops[index]
    if probe.sees_code or op.kind is not OpKind.HYPERCALL or op.has_page:
        return case
    nr, gpa, pages, *rest = op.arguments
    page = _GPA.search(sighting.violation.message)
    if sighting.symptom.name != RECORD or pages <= 1 or page is None:
        return case
    for place in (gpa, int(page[1], 16), gpa + (pages - 1) * PAGE_SIZE & U64_MASK):
        one = msgspec.structs.replace(op, arguments=(nr, place, 1, *rest))
        for ops in ((one,), (*case.ops[:index], one)):
            look = probe.try_look(ops, traced=True)
            for seen in look.first if look is not None else ():
                if seen.symptom.name == RECORD or is_of_bits(seen.symptom.name):
                    return Case(ops, seen)
    return case


def _in_two_calls(probe: Probe, case: Case) -> tuple[Op, ...] | None:
    """The program of a case with two calls side by side in place of the last one, if the second is
    recorded wrong where the one was: what a host makes of ranges that meet does not need a range
    over two of its slots. Where no code can be suspected, the program names the finding."""
    sighting, index = case.sighting, case.sighting.violation.op
    op = case.ops[index]
    page = _GPA.search(sighting.violation.message)
    if op.kind is not OpKind.HYPERCALL or op.has_page or page is None:
        return None
    nr, gpa, pages, *rest = op.arguments
    few = int(page[1], 16) // PAGE_SIZE - gpa // PAGE_SIZE
    if sighting.symptom.name != RECORD or not 0 < few < pages:
        return None
    parts = (nr, gpa, few, *rest), (nr, gpa + few * PAGE_SIZE, pages - few, *rest)
    calls = [msgspec.structs.replace(op, arguments=arguments) for arguments in parts]
    ops = (*case.ops[:index], *calls)
    look = probe.try_look(ops, traced=True)
    for seen in look.first if look is not None else ():
        is_same = is_of_whole_range(seen.symptom) and not probe.suspicious(seen)
        if seen.violation.op == index + 1 and is_same:
            return ops
    return None


def as_it_is(probe: Probe, ops: tuple[Op, ...], sighting: Sighting) -> Finding:
    """A finding whose program is `ops` and whose host code is unknown."""
    violation, name = sighting.violation, sighting.symptom.name
    where = (host_name(probe.header.host),)
    return Finding(
        key=finding_key(violation, name, ops, where),
        symptom=name,
        ops=ops,
        violation=violation,
        violations=(violation,),
        places=(),
        spots=frozenset(),
        effect=sighting.symptom.effect,
    )


def _failure(probe: Probe, case: Case) -> Finding:
    """The finding of a host that failed. It is named by how and where, so a short program is
    enough: each try may cost a hang, or a process."""
    name = case.sighting.symptom.name

    def shown(ops: tuple[Op, ...]) -> Sighting | None:
        look = probe.try_look(ops)
        sightings = look.sightings if look is not None else ()
        return next((one for one in sightings if one.symptom.name == name), None)

    ops, sighting = case.ops[: case.sighting.violation.op + 1], case.sighting
    probe.shorten(_FAILURE_RUNS)
    for _ in range(len(ops)):
        for index in range(len(ops) - 1, -1, -1):
            fewer = (*ops[:index], *ops[index + 1 :])
            found = shown(fewer) if fewer else None
            if found is not None:
                ops, sighting = fewer, found
                break
        else:
            break
    for index in range(len(ops)):
        tried = ops
        while tried is ops:
            for candidate in plainer(ops[index]):
                tried = (*ops[:index], candidate, *ops[index + 1 :])
                found = shown(tried)
                if found is not None:
                    ops, sighting = tried, found
                    break
            else:
                break
    return as_it_is(probe, ops, sighting)


def _search(probe: Probe, case: Case, known: Spots) -> list[Finding]:
    """See `identify`."""
    name = case.sighting.symptom.name
    order = order_of(case.ops)
    check = case.sighting.violation.check if is_of_bits(name) else ""
    spots, before = probe.suspicious(case.sighting), None
    while spots != before:  # what runs without a violation meanwhile clears code of suspicion
        suspect = Suspect(name, spots, order, check=check)
        start = Canonical(probe, suspect).drop(case.ops)
        shown = find_suspect(probe, probe.try_look(start, traced=True), suspect)
        if shown is not None:
            break
        spots, before = probe.suspicious(case.sighting), spots
    else:
        return []
    spots, effect = probe.suspicious_beside(start, shown), shown.symptom.effect
    first = _finding(probe, start, Suspect(name, spots, order, check=check))
    if first is None:
        return []
    if effect == first.effect:
        return [_by_its_code(probe, first)]
    found = {first.key: first}
    other = _elsewhere(probe, start, first, around(start))
    if other is not None:
        found.setdefault(other.key, other)
    left = spots - first.spots - known - (other.spots if other else frozenset())
    if left:
        hidden = _finding(probe, start, Suspect(name, spots, order, left, first.effect))
        if hidden is not None:
            near = around_twice(hidden.ops)
            alone = _elsewhere(probe, hidden.ops, first, near, left, spots)
            if alone is None and not _is_one_extent(hidden.effect, first.effect):
                alone = hidden
            if alone is not None:
                found.setdefault(alone.key, alone)
    return list(found.values())


def _is_one_extent(one: str, other: str) -> bool:
    """Whether two effects are one: of a range of one page the first is all of it."""
    parts = [effect.rpartition(", ") for effect in (one, other)]
    is_all = [is_of_whole_range(Symptom(RECORD, effect)) for effect in (one, other)]
    return any(is_all) and parts[0][2] == parts[1][2] in _COUNTED


def _by_its_code(probe: Probe, found: Finding) -> Finding:
    """The finding of a simpler neighbour that gets the same wrong answer under another rule of the
    contract and executes all of `found`'s suspicious code, or `found`: code that only wrong answers
    execute is one defect, whichever rule it stands in front of."""
    if not found.spots or found.violation.check != "results":
        return found
    index = found.violation.op
    shown = probe.look(found.ops, traced=True)
    for ops in filter(probe.allows, around(found.ops)):
        if len(ops) < len(found.ops) or not is_simpler_program(ops, found.ops):
            continue
        look = probe.try_look(ops, traced=True)
        if look is None or _answers(look, index) != _answers(shown, index):
            continue
        for sighting in look.sightings:
            spots, name = probe.suspicious(sighting), sighting.symptom.name
            is_answer = (sighting.violation.check, sighting.violation.op) == ("results", index)
            if is_answer and name != found.symptom and spots >= found.spots:
                return _finding(probe, ops, Suspect(name, spots, order_of(ops))) or found
    return found


def _answers(look: Look, index: int) -> list[int | None]:
    return [record.ret for record in look.exits[index]] if index < len(look.exits) else []


def _elsewhere(
    probe: Probe,
    start: tuple[Op, ...],
    first: Finding,
    near: Iterable[tuple[Op, ...]],
    wanted: Spots = frozenset(),
    inside: Spots = frozenset(),
) -> Finding | None:
    """The finding behind a program `near` to `start` that looks like `first` and executes none of
    its suspicious code; with `wanted`, that executes some of that and not all of what `first` has
    `inside`."""
    if not first.spots:
        return None
    common = first.spots & inside
    for ops in filter(probe.allows, near):
        look = probe.try_look(ops, traced=True)
        for sighting in () if look is None else look.sightings:
            spots = probe.suspicious(sighting)
            is_other = spots & wanted and not spots >= common
            if not wanted:
                is_other = not spots & first.spots
            if sighting.symptom.name == first.symptom and is_other:
                return _finding(probe, ops, Suspect(first.symptom, spots, order_of(ops)))
    return None


def _finding(probe: Probe, ops: tuple[Op, ...], suspect: Suspect) -> Finding | None:
    ops, suspect = narrow(probe, Canonical(probe, suspect).drop(ops), suspect)
    smallest = Canonical(probe, suspect).minimise(ops)
    look = probe.look_again(smallest)
    own = find_suspect(probe, look, suspect)
    if own is None:
        return None
    own = _first_of_all(probe, smallest, look, own)
    if not suspect.spots and not suspect.is_whole:
        parts = _in_two_calls(probe, Case(smallest, own))
        if parts is not None:
            return _finding(probe, parts, msgspec.structs.replace(suspect, is_whole=True))
    spots = probe.fresh().suspicious_beside(smallest, own)
    where = (host_name(probe.header.host), *probe.code.anchors(spots))
    key = finding_key(own.violation, own.symptom.name, smallest, where)
    return Finding(
        key,
        own.symptom.name,
        smallest,
        own.violation,
        tuple(look.violations),
        probe.code.places(spots),
        probe.suspicious(own),
        own.symptom.effect,
    )


def _first_of_all(probe: Probe, ops: tuple[Op, ...], look: Look, own: Sighting) -> Sighting:
    """Of the sightings of one operation that have one canonical program in common the first: a host
    that answers and records wrongly at once has one defect, not two, unless it is seen to do the
    second without the first."""
    for other in look.sightings:
        if other == own:
            return own
        if other.violation.op != own.violation.op:
            continue
        if other.symptom.name == own.symptom.name:
            return other
        suspect = Suspect(other.symptom.name, probe.suspicious(other), order_of(ops))
        is_one = Canonical(probe, suspect).minimise(ops) == ops
        if is_one and not _is_seen_without(probe, ops, own, other):
            return other
    return own


def _is_seen_without(probe: Probe, ops: tuple[Op, ...], own: Sighting, other: Sighting) -> bool:
    """Whether a neighbour of `ops` has the symptom of `own` and not that of `other`."""
    for candidate in around(ops):
        look = probe.try_look(candidate)
        names = {sighting.symptom.name for sighting in look.sightings} if look else set()
        if own.symptom.name in names and other.symptom.name not in names:
            return True
    return False
