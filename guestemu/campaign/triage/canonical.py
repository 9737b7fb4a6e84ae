# SPDX-License-Identifier: GPL-2.0-or-later
"""The one program that stands for a defect.

Delta debugging ends in whichever small program is near; two ways into one defect then end in two.
So after it every field is tried at the values worth trying, in a fixed order and across the whole
range, and coupled fields together: the first program in that order that is still the same defect
stands for it. "The same" is the same symptom and no suspicious host code that was not there before,
so that the search does not slip into another defect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE, U32_MASK, U64_MASK, to_signed
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.campaign.triage.hostcode import Spots
from guestemu.campaign.triage.probe import Look, Probe, Sighting, neighbours, with_attributes
from guestemu.campaign.triage.symptom import is_of_whole_range
from guestemu.program.ops import MIGRATION_SPECS, SPECS, Argument, Op, OpKind, canonical_op
from guestemu.program.program import Program
from guestemu.program.shrink import shrink
from guestemu.program.validity import takes_page
from guestemu.program.values import BOUNDARIES

SHRINK_LIMIT: Final = 400
SEARCH_LIMIT: Final = 4000
SLOW_SEARCH_LIMIT: Final = 400
"""Runs that delta debugging and the search through values may take for one finding; the search
fewer where a run takes milliseconds: several hosts in lock-step, a real kernel."""

_ROUNDS: Final = 4
_FEW: Final = 2
_SMALL: Final = tuple(range(9))
_FRAMES: Final = 65
_GPA: Final = 1
_RANGE: Final = slice(1, 3)
_ATTRIBUTES: Final = 3
"""The address and the attributes among a hypercall's arguments."""
_WIDE: Final = frozenset({Argument.COUNT, Argument.ADDRESS, Argument.U64})
_CONVERSIONS: Final = (
    OpKind.SET_MEMORY_DECRYPTED,
    OpKind.SET_MEMORY_ENCRYPTED,
    OpKind.EARLY_SET_MEMORY_DECRYPTED,
    OpKind.EARLY_SET_MEMORY_ENCRYPTED,
)
_BY_SIZE: Final = _CONVERSIONS[2:]
"""Those that take bytes, the others pages."""

_DEFAULTS: Final = {
    OpKind.SET_MEMORY_DECRYPTED: (1, 0),
    OpKind.SET_MEMORY_ENCRYPTED: (1, 0),
    OpKind.EARLY_SET_MEMORY_DECRYPTED: (PAGE_SIZE, 0),
}


class Suspect(msgspec.Struct, frozen=True):
    """What a candidate must show: the symptom; suspicious code within `spots`, some of it if there
    is any there, all of `needed`; an effect that is not `not_effect`; a first violation of `check`,
    if it names one; the steps of a migration in `order`: a step left out would lose data by itself;
    with `is_whole` a range of which nothing is recorded right.
    """

    name: str
    spots: Spots
    order: tuple[Op, ...]
    needed: Spots = frozenset()
    not_effect: str | None = None
    check: str = ""
    is_whole: bool = False


def narrow(probe: Probe, ops: tuple[Op, ...], suspect: Suspect) -> tuple[tuple[Op, ...], Suspect]:
    """Neighbours of `ops` that show the suspect with less suspicious code, until there is none.

    What two defects at once or a rare path of the host added is gone then. To none at all it may
    only go by a simpler program with the same effect: that may be another defect.
    """
    effect = _effect(probe, ops, suspect)
    while suspect.spots:
        for candidate in filter(probe.allows, around(ops)):
            look = probe.try_look(candidate, traced=True)
            is_simpler = is_simpler_program(candidate, ops)
            found = find_suspect(probe, look, suspect, or_none=is_simpler)
            if found is None:
                continue
            spots = probe.suspicious(found)
            if spots < suspect.spots and (spots or found.symptom.effect == effect):
                ops, suspect = candidate, msgspec.structs.replace(suspect, spots=spots)
                effect = found.symptom.effect
                break
        else:
            break
    return ops, suspect


def _effect(probe: Probe, ops: tuple[Op, ...], suspect: Suspect) -> str:
    found = find_suspect(probe, probe.try_look(ops, traced=True), suspect)
    return "" if found is None else found.symptom.effect


def around(ops: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """Programs one op or one field away."""
    for index, op in enumerate(ops):
        if len(ops) > 1:
            yield (*ops[:index], *ops[index + 1 :])
        for other in neighbours(op):
            yield (*ops[:index], other, *ops[index + 1 :])


def around_twice(ops: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """`around`, then programs with address and length of one hypercall changed at once."""
    yield from around(ops)
    for index, op in enumerate(ops):
        for other in _coupled(op):
            yield (*ops[:index], other, *ops[index + 1 :])


def is_simpler_program(one: tuple[Op, ...], other: tuple[Op, ...]) -> bool:
    """Whether `one` has fewer ops than `other`, or as many and in none of them a larger value."""
    if len(one) < len(other):
        return True
    return all(a == b or _is_simpler(a, b) for a, b in zip(one, other, strict=True))


def _is_simpler(one: Op, other: Op) -> bool:
    pairs = zip(one.arguments, other.arguments, strict=True)
    if any(simplicity(a) > simplicity(b) for a, b in pairs):
        return False
    return (one.mode, one.cpl) <= (other.mode, other.cpl)


def order_of(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """The migration's steps among `ops`."""
    return tuple(op for op in ops if op.kind in MIGRATION_SPECS)


def find_suspect(
    probe: Probe, look: Look | None, suspect: Suspect, or_none: bool = False
) -> Sighting | None:
    """The first sighting of `look` that is `suspect`, `or_none`: or has no suspicious code."""
    if look is None:
        return None
    for sighting in look.first:
        if suspect.check not in {"", look.first[0].violation.check}:
            return None
        if sighting.symptom.name != suspect.name:
            continue
        if suspect.not_effect == sighting.symptom.effect:
            continue
        if suspect.is_whole and not is_of_whole_range(sighting.symptom):
            continue
        spots = probe.suspicious(sighting)
        is_known = bool(spots) == bool(suspect.spots) or (or_none and not spots)
        if not is_known or not spots <= suspect.spots:
            continue
        if suspect.needed <= spots:
            return sighting
    return None


class Canonical:
    """The search for one suspect from one program."""

    def __init__(self, probe: Probe, suspect: Suspect) -> None:
        self.probe = probe
        self.suspect = suspect
        self._left = SLOW_SEARCH_LIMIT if probe.is_slow else SEARCH_LIMIT
        self._known: dict[tuple[Op, ...], bool] = {}

    def holds(self, ops: tuple[Op, ...]) -> bool:
        """Whether `ops` show the suspect."""
        known = self._known.get(ops)
        if known is None and order_of(ops) != self.suspect.order:
            return False
        if known is None:
            known = self.probe.allows(ops) and self._shows(ops)
            self._known[ops] = known
        return known

    def _shows(self, ops: tuple[Op, ...]) -> bool:
        """Looks at the host's code, which costs fifty times as much, only where something is
        wrong."""
        probe, suspect = self.probe, self.suspect
        if not probe.is_slow:
            look = probe.try_look(ops)
            if look is None or not look.sightings:
                return False
        return find_suspect(probe, probe.try_look(ops, traced=True), suspect) is not None

    def minimise(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """The canonical program reached from `ops`, which show the suspect."""
        header = self.probe.header

        def keeps(candidate: Program) -> bool:
            return candidate.header == header and self.holds(candidate.ops)

        ops = shrink(Program(header, self._raw(ops)), keeps, SHRINK_LIMIT).ops
        for _ in range(_ROUNDS):
            before = ops
            for index in range(len(ops)):
                ops = self._search(ops, index)
            ops = self.drop(self._moved(self._mirrored(self._alike(ops))))
            if ops == before or self._left <= 0:
                break
        return ops

    def _raw(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """`ops` with addresses in place of pages in all raw hypercalls at once."""
        raw = tuple(
            canonical_op(msgspec.structs.replace(op, has_page=False)) if op.has_page else op
            for op in ops
        )
        return raw if raw != ops and self.holds(raw) else ops

    def _alike(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """`ops` with all calls before the last one as the first and the last one sharing, if they
        show the same: what goes wrong at the n-th call does so whatever came before."""
        if len(ops) <= _FEW or not all(map(_has_gpa, ops)):
            return ops
        alike = (*ops[:1] * (len(ops) - 1), _sharing(ops[-1]))
        return alike if alike != ops and self.holds(alike) else ops

    def _mirrored(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """`ops` with every status the other way, if they then begin with sharing: what goes wrong
        between two statuses does so either way round."""
        raw = [op for op in ops if op.kind is OpKind.HYPERCALL]
        if not raw or not raw[0].arguments[_ATTRIBUTES] & MAP_GPA_RANGE_ENCRYPTED:
            return ops
        mirrored = tuple(map(_mirror, ops))
        return mirrored if self.holds(mirrored) else ops

    def _moved(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """`ops` with everything moved down together: ops that meet on a page must go on to."""
        lowest = [op.arguments[_GPA] & ~PAGE_MASK for op in ops if _has_gpa(op)]
        pages = [op.page for op in ops if takes_page(op)]
        for gpa, page in ((min(lowest, default=0), 0), (0, min(pages, default=0))):
            moved = tuple(_moved_down(op, gpa, page) for op in ops)
            if moved != ops and self.holds(moved):
                ops = moved
        return ops

    def drop(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """`ops` without those that are not needed, tried in chunks from large to small. What goes
        wrong behind a reset of the VM, which makes all pages private, may do so for the other
        status without one."""
        size = len(ops)
        while size:
            end = len(ops)
            while end > 0:
                start = max(end - size, 0)
                fewer = ops[:start] + ops[end:]
                candidates = [fewer, tuple(map(_sharing, fewer))]
                if any(op.kind is OpKind.VM_RESET for op in ops[start:end]):
                    candidates.append((*ops[:start], *map(_mirror, ops[end:])))
                for candidate in candidates:
                    if candidate and self.holds(candidate):
                        ops = candidate
                        break
                end = start
            size //= 2
        return ops

    def _search(self, ops: tuple[Op, ...], index: int) -> tuple[Op, ...]:
        """`ops` with the simplest op in place of the one at `index`."""
        for variants in (_kinds, _modes, _in_long_mode, _coupled, _values, _pages, _values):
            for op in variants(ops[index]):
                if self._left <= 0:
                    return ops
                if op == ops[index]:
                    break
                found = self._first_that_holds(_with(ops, index, op))
                if found is not None:
                    ops = found
                    break
        return ops

    def _first_that_holds(self, candidates: Iterator[tuple[Op, ...]]) -> tuple[Op, ...] | None:
        for candidate in candidates:
            if candidate not in self._known:
                self._left -= 1
            if self.holds(candidate):
                return candidate
        return None


def _with(ops: tuple[Op, ...], index: int, op: Op) -> Iterator[tuple[Op, ...]]:
    """`ops` with `op` in place of the one at `index`; then with its range in all calls that had the
    same one, and with calls that began where it ended moved along: a host that remembers a range
    goes wrong where it comes again, or where another one meets it."""
    one = (*ops[:index], op, *ops[index + 1 :])
    yield one
    if not _has_gpa(op) or not _has_gpa(ops[index]):
        return
    old, new = ops[index].arguments[_RANGE], op.arguments[_RANGE]
    old_end, new_end = (gpa + pages * PAGE_SIZE & U64_MASK for gpa, pages in (old, new))
    alike, moved = list(one), list(one)
    for place, other in enumerate(one):
        if place != index and _has_gpa(other):
            gpa, pages = other.arguments[_RANGE]
            if (gpa, pages) == old:
                alike[place] = _at(other, new)
            if gpa == old_end:
                moved[place] = _at(other, (new_end, pages))
    yield from (candidate for candidate in map(tuple, (alike, moved)) if candidate != one)


def _at(op: Op, place: tuple[int, ...]) -> Op:
    """A raw hypercall for another range."""
    arguments = (op.arguments[0], *place, *op.arguments[_ATTRIBUTES:])
    return msgspec.structs.replace(op, arguments=arguments)


def _sharing(op: Op) -> Op:
    """A raw hypercall that makes private turned into one that shares: it then needs no page that
    was shared before."""
    if op.kind is not OpKind.HYPERCALL or op.arguments[_ATTRIBUTES] != MAP_GPA_RANGE_ENCRYPTED:
        return op
    return with_attributes(op, 0)


def _mirror(op: Op) -> Op:
    """A raw hypercall with the other status."""
    if op.kind is not OpKind.HYPERCALL:
        return op
    return with_attributes(op, op.arguments[_ATTRIBUTES] ^ MAP_GPA_RANGE_ENCRYPTED)


def plainer(op: Op) -> Iterator[Op]:
    """`op` with one argument after the other at its default, all that came before kept."""
    spec = SPECS[op.kind]
    if op.kind is OpKind.HYPERCALL and op.has_page:
        yield canonical_op(msgspec.structs.replace(op, has_page=False))
    for position, argument in enumerate(spec.arguments):
        if op.arguments[position] != argument.default:
            arguments = list(op.arguments)
            arguments[position] = argument.default
            yield msgspec.structs.replace(op, arguments=tuple(arguments))
    if op.mode is not Mode.LONG64 or op.cpl:
        yield msgspec.structs.replace(op, mode=Mode.LONG64, cpl=0)


def _has_gpa(op: Op) -> bool:
    return op.kind is OpKind.HYPERCALL and not op.has_page


def _moved_down(op: Op, gpa: int, pages: int) -> Op:
    if _has_gpa(op):
        arguments = list(op.arguments)
        arguments[_GPA] -= gpa
        return msgspec.structs.replace(op, arguments=tuple(arguments))
    return msgspec.structs.replace(op, page=op.page - pages) if takes_page(op) else op


def _kinds(op: Op) -> Iterator[Op]:
    """Conversions in a fixed order of kinds, each with its defaults and then with what it has."""
    if op.kind not in _CONVERSIONS:
        return
    for kind in _CONVERSIONS:
        if kind is op.kind:
            return
        yield msgspec.structs.replace(op, kind=kind, arguments=_DEFAULTS[kind])
        pages, offset = op.arguments
        if op.kind in _BY_SIZE and kind not in _BY_SIZE:
            pages = -(-pages // PAGE_SIZE)
        yield msgspec.structs.replace(op, kind=kind, arguments=(pages, offset))


def _modes(op: Op) -> Iterator[Op]:
    """Instruction, mode and CPL in a fixed order, up to what the op has."""
    spec = SPECS[op.kind]
    if not spec.has_mode:
        return
    instructions = tuple(Instruction) if op.kind is OpKind.HYPERCALL else (op.instruction,)
    for mode, cpl, instruction in product(Mode, range(4), instructions):
        if mode is Mode.REAL16 and cpl:
            continue
        yield msgspec.structs.replace(op, mode=mode, cpl=cpl, instruction=instruction)


def _in_long_mode(op: Op) -> Iterator[Op]:
    """A hypercall of 64-bit code for as many pages as are worth trying: of all registers' upper
    halves none counts in the modes below, so that a range there may be one that wraps here."""
    if not _has_gpa(op) or op.mode is Mode.LONG64:
        return
    nr, gpa, _, *rest = (value & U32_MASK for value in op.arguments)
    for pages in sorted({*_SMALL, *BOUNDARIES[Argument.COUNT]}):
        if pages <= U32_MASK:
            arguments = (nr, gpa, pages, *rest)
            yield msgspec.structs.replace(op, mode=Mode.LONG64, arguments=arguments)


def _pages(op: Op) -> Iterator[Op]:
    """Regions in their order and the first pages of each, up to what the op has."""
    if not takes_page(op):
        return
    for region in Region:
        for page in range(4):
            yield msgspec.structs.replace(op, region=region, page=page)
            if (region, page) == (op.region, op.page):
                return


def simplicity(value: int) -> tuple[int, ...]:
    """Sorts 64-bit values: small ones first, -1 after 1, -2 after 2."""
    return abs(to_signed(value, 64)), value


def _numeric(value: int) -> tuple[int, ...]:
    return (value,)


def _candidates(argument: Argument, current: int, default: int) -> tuple[int, ...]:
    """The default, then what is simpler than `current`, then `current`."""
    values = {*_SMALL, *BOUNDARIES.get(argument, ())}
    if argument in _WIDE:  # -1, -2 …
        values |= {-small & U64_MASK for small in _SMALL}
    order: Callable[[int], tuple[int, ...]] = simplicity if argument in _WIDE else _numeric
    simpler = {value for value in values if order(value) < order(current)} - {default}
    first = () if current == default else (default,)
    return (*first, *sorted(simpler, key=order), current)


def _coupled(op: Op) -> Iterator[Op]:
    """A hypercall's number of pages with its address: a range's end depends on both."""
    if op.kind is not OpKind.HYPERCALL or op.has_page:
        return
    nr, gpa, pages, *rest = op.arguments
    addresses = {*BOUNDARIES[Argument.ADDRESS], gpa}
    addresses |= {frame * PAGE_SIZE for frame in range(_FRAMES)}
    in_order = sorted(addresses, key=simplicity)
    for few in _candidates(Argument.COUNT, pages, 0):
        for address in in_order:
            yield msgspec.structs.replace(op, arguments=(nr, address, few, *rest))
            if (few, address) == (pages, gpa):
                return


def _values(op: Op) -> Iterator[Op]:
    """One argument after the other, each from its default on; the last is the op itself."""
    spec = SPECS[op.kind]
    for position, argument in enumerate(spec.arguments):
        current = op.arguments[position]
        for value in _candidates(argument.sort, current, argument.default):
            if value == current:
                break
            arguments = (*op.arguments[:position], value, *op.arguments[position + 1 :])
            yield msgspec.structs.replace(op, arguments=arguments)
    yield op
