# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutator of a campaign: mostly cheap changes of one field, at times a change of structure.

`mutate_bytes` knows ops but costs as much as a run. A field of a record is one byte that chooses
from a palette, so poking that byte is nearly as good a change and ten times cheaper. One result in
sixteen may hold VMCALL: KVM patches that instruction, which costs several runs. A quarter of the
pokes also drop the last op: short programs are fast, and an engine keeps the longer one where it
covers more. One poke in eight also writes an edge of `program.values` into an argument in full: no
choice from a palette reaches those where a call may loop (2^19 pages and more).
"""

from __future__ import annotations

import struct
from typing import Final

from guestemu.program.binary import RECORD_SIZE
from guestemu.program.generate import hostile_flows
from guestemu.program.mutate import Draws, mutate_bytes, split_records
from guestemu.program.ops import SPECS, OpKind
from guestemu.program.program import Header
from guestemu.program.values import BOUNDARIES, LATER_EDGES, Extra, palette_of, with_extra

_FIELDS: Final = (0, 1, 1, 2, 4, 4, 5, 8, 8, 16, 16, 24, 24, 32, 40)
"""Offsets in a record of the bytes that decide: kind, posture, region, page, five choices."""

_POSTURE: Final = 1
_NO_VMCALL: Final = 0xEF
_STRUCTURE_SHARE: Final = 10
_STRUCTURE_MASK: Final = 31
_HOSTILE_BITS: Final = 3 << 6
_ORDERS: Final = 5
_LONGEST_RUN: Final = 4
_EDGE: Final = 7
_DROP: Final = 3
_SELECT_RAW: Final = 0xE0
_KIND_BYTES: Final = 256
_ARGUMENT: Final = struct.Struct("<Q")
_FIRST_ARGUMENT: Final = 8
_NO_EXTRA: Final[Extra] = {}


class Mutator:
    """`mutate` has the signature of a libFuzzer custom mutator; equal arguments, equal result."""

    __slots__ = ("_edges", "_header", "_is_hostile", "_kinds")

    def __init__(self, header: Header, kinds: frozenset[OpKind], extra: Extra = _NO_EXTRA) -> None:
        self._header = header
        self._kinds = kinds
        self._is_hostile = bool(hostile_flows(kinds))
        allowed = sorted(kinds)
        self._edges = tuple(
            _edges_of(OpKind(byte) if byte in kinds else allowed[byte % len(allowed)], extra)
            for byte in range(_KIND_BYTES)
        )

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A changed copy of `data`, whole records, at most `max_size` bytes."""
        state = stir(seed)
        is_short = len(data) < RECORD_SIZE
        return self._change(
            data, max_size, state, is_short or not state % _STRUCTURE_SHARE, not state >> 4 & _EDGE
        )

    def uncommon(self, data: bytes, max_size: int, seed: int) -> bytes:
        """As `mutate`, without the mere pokes: an edge, or for a multiple of 32 as `seed` a change
        of structure; where one side is hostile, three edges in four are one too. `data` and
        `max_size` hold a record."""
        structure = not seed & _STRUCTURE_MASK or bool(self._is_hostile and seed & _HOSTILE_BITS)
        return self._change(data, max_size, stir(seed), structure, True)

    def _change(self, data: bytes, max_size: int, state: int, structure: bool, edge: bool) -> bytes:
        if structure:
            changed = bytearray(mutate_bytes(data, max_size, state, self._header, self._kinds))
        else:
            changed = poke(data, max_size, state)
            if len(changed) > RECORD_SIZE and state >> 40 & _DROP == 0:
                del changed[-RECORD_SIZE:]
            if changed and edge:
                self._put_edge(changed, state >> 8)
        if state >> 60:
            avoid_vmcall(changed, len(changed))
        return bytes(changed)

    def _put_edge(self, records: bytearray, state: int) -> None:
        """Writes an edge of its sort into one argument of one record, in full."""
        start = (state & 0xFF) % (len(records) // RECORD_SIZE) * RECORD_SIZE
        edges = self._edges[records[start]]
        if not edges:
            return
        chosen = (state >> 8 & 0xFF) % len(edges)
        is_raw = records[start + _POSTURE] >= _SELECT_RAW
        records[start + _POSTURE] |= _SELECT_RAW
        place = start + _FIRST_ARGUMENT
        for position, (palette, values) in enumerate(edges):
            if position == chosen:
                _ARGUMENT.pack_into(records, place, values[(state >> 16) % len(values)])
            elif not is_raw:
                _ARGUMENT.pack_into(records, place, palette[records[place]])
            place += _ARGUMENT.size


def _edges_of(kind: OpKind, extra: Extra) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Per argument of `kind`, its palette and its edges."""
    found = []
    for position, argument in enumerate(SPECS[kind].arguments):
        more = extra.get(argument.sort, ())
        later = LATER_EDGES.get((kind, position), ())
        palette = with_extra(palette_of(kind, position), more)
        found.append((palette, (*BOUNDARIES[argument.sort], *later, *more)))
    return tuple(found)


def avoid_vmcall(records: bytearray, size: int) -> None:
    """Makes every hypercall in the first `size` bytes a VMMCALL."""
    for offset in range(_POSTURE, size, RECORD_SIZE):
        records[offset] &= _NO_VMCALL


def stir(seed: int) -> int:
    """64 bits that all depend on the 32 of `seed`."""
    state = (seed * 0x9E37_79B9_7F4A_7C15 + 0x1234_5678_9ABC_DEF1) & 0xFFFF_FFFF_FFFF_FFFF
    return state ^ state >> 29


def fresh(max_size: int, state: int) -> bytearray:
    """A random program of any length up to `max_size` bytes, which hold a record."""
    count = 1 + (state >> 32 & 0xFFFF) % (max_size // RECORD_SIZE)
    draws = Draws(state)
    words = (_ARGUMENT.pack(draws.next()) for _ in range(count * RECORD_SIZE // _ARGUMENT.size))
    return bytearray(b"".join(words))


def poke(data: bytes, max_size: int, state: int) -> bytearray:
    """The whole records of `data` with one or two fields changed."""
    records = min(len(data), max_size) // RECORD_SIZE
    changed = bytearray(data[: records * RECORD_SIZE])
    if not records:
        return changed
    state >>= 2
    for _ in range(1 + (state & 1)):
        record = (state >> 1 & 0xFF) % records
        field = _FIELDS[(state >> 9 & 0xFF) % len(_FIELDS)]
        changed[record * RECORD_SIZE + field] = state >> 17 & 0xFF
        state >>= 24
    return changed


def reorder(data: bytes, max_size: int, state: int) -> bytearray:
    """The whole records of `data`, one at least, after an insertion, a deletion, an exchange, a run
    repeated elsewhere, or one repeated with a poke."""
    records = split_records(data[:max_size])
    draws = Draws(state)
    order = draws.below(_ORDERS)
    start = draws.below(len(records))
    place = draws.below(len(records) + 1)
    if order == 0:
        records.insert(place, bytes(fresh(RECORD_SIZE, draws.next())))
    elif order == 1:
        if len(records) > 1:
            del records[start]
    elif order == 2:
        place %= len(records)
        records[start], records[place] = records[place], records[start]
    elif order == 3:
        records[place:place] = records[start : start + 1 + draws.below(_LONGEST_RUN)]
    else:
        records.insert(start + 1, bytes(poke(records[start], RECORD_SIZE, draws.next())))
    return bytearray(b"".join(records)[: max_size // RECORD_SIZE * RECORD_SIZE])
