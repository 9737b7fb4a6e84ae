# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutation and crossover that know ops.

A byte-level mutator spends most of its changes on bytes that mean nothing or breaks the relation
between two ops on the same page. This one works on whole records: it inserts, deletes, swaps,
repeats and inverts ops and moves single fields to neighbouring or edge values. It works on the
binary form, because a fuzzer hands it bytes and only the touched record needs decoding; the
functions on op tuples go through the same code. Everything is decided by the arguments and the
seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.x86 import Mode
from guestemu.program.binary import (
    ALL_KINDS,
    RECORD,
    RECORD_SIZE,
    OpDecoder,
    decoder_for,
    encode_op,
    encode_ops,
)
from guestemu.program.generate import hostile_flows
from guestemu.program.ops import ARGUMENT_MASKS, REGIONS, SPECS, Instruction, Op, OpKind
from guestemu.program.program import Header
from guestemu.program.validity import takes_page
from guestemu.program.values import BOUNDARIES, HOT_PAGES, LATER_EDGES

_DEFAULT_HEADER: Final = Header()
_INVERSES: Final = {
    OpKind.SET_MEMORY_ENCRYPTED: OpKind.SET_MEMORY_DECRYPTED,
    OpKind.SET_MEMORY_DECRYPTED: OpKind.SET_MEMORY_ENCRYPTED,
    OpKind.EARLY_SET_MEMORY_ENCRYPTED: OpKind.EARLY_SET_MEMORY_DECRYPTED,
    OpKind.EARLY_SET_MEMORY_DECRYPTED: OpKind.EARLY_SET_MEMORY_ENCRYPTED,
    OpKind.WRITE: OpKind.READ,
    OpKind.READ: OpKind.WRITE,
    OpKind.DMA_ALLOC: OpKind.DMA_FREE,
    OpKind.DMA_ALLOC_PAGES: OpKind.DMA_FREE_PAGES,
}


class Draws:
    """A stream of numbers from a seed (splitmix64): seeding `random.Random` costs more than a
    whole mutation."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & U64_MASK

    def next(self) -> int:
        """The next 64 bits."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & U64_MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & U64_MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & U64_MASK
        return state ^ (state >> 31)

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1; `bound` is at least 1."""
        return self.next() % bound


class _Target(NamedTuple):
    """What mutated programs must be valid for."""

    decoder: OpDecoder
    vcpus: int
    kinds: tuple[OpKind, ...]


Records = list[bytes]
_Mutation = Callable[[Records, Draws, _Target], None]


def _rewrite(records: Records, index: int, target: _Target, change: Callable[[Op], Op]) -> None:
    """Replaces record `index` by its op after `change`."""
    records[index] = encode_op(change(target.decoder.decode(records[index])[0]))


def _insert(records: Records, draws: Draws, target: _Target) -> None:
    kind = target.kinds[draws.below(len(target.kinds))]
    bits = draws.next()
    arguments = (draws.next() for _ in range(5))
    fields = (bits & 0xFF, bits >> 8 & 0xFF, bits >> 16 & 0xFF, bits >> 32)
    records.insert(draws.below(len(records) + 1), RECORD.pack(kind, *fields, *arguments))


def _delete(records: Records, draws: Draws, target: _Target) -> None:
    if len(records) > 1:
        start = draws.below(len(records))
        del records[start : start + 1 + draws.below(2)]
    if not records:
        _insert(records, draws, target)


def _swap(records: Records, draws: Draws, target: _Target) -> None:
    a, b = draws.below(len(records)), draws.below(len(records))
    records[a], records[b] = records[b], records[a]


def _repeat(records: Records, draws: Draws, target: _Target) -> None:
    """Copies a short run of ops to behind itself or elsewhere."""
    start = draws.below(len(records))
    run = records[start : start + 1 + draws.below(4)]
    place = draws.below(len(records) + 1)
    records[place:place] = run


def _nudge_range(op: Op, draws: Draws) -> Op:
    """`op` on a neighbouring, overlapping or hot page, or with a neighbouring first argument."""
    choice = draws.below(3)
    if choice and takes_page(op):
        pages = REGIONS[op.region].pages
        hot = HOT_PAGES[op.region]
        moved = hot[draws.below(len(hot))] if choice == 1 else op.page + draws.below(9) - 4
        return msgspec.structs.replace(op, page=moved % pages)
    if not op.arguments:
        return op
    mask = ARGUMENT_MASKS[SPECS[op.kind].arguments[0].sort]
    first = (op.arguments[0] + draws.below(9) - 4) & mask
    return msgspec.structs.replace(op, arguments=(first, *op.arguments[1:]))


def _duplicate(records: Records, draws: Draws, target: _Target) -> None:
    """The same op again on a range nearby: overlapping intervals."""
    index = draws.below(len(records))
    records.insert(index + 1, records[index])
    _rewrite(records, index + 1, target, lambda op: _nudge_range(op, draws))


def _invert(records: Records, draws: Draws, target: _Target) -> None:
    """The opposite of an op behind it: encrypt after decrypt, free after alloc, read after write.

    An op without an opposite is repeated with its other arguments nudged.
    """
    index = draws.below(len(records))
    op = target.decoder.decode(records[index])[0]
    inverse = _INVERSES.get(op.kind)
    if inverse is None or inverse not in target.kinds:
        _duplicate(records, draws, target)
        return
    count = len(SPECS[inverse].arguments)
    kept = op.arguments[:count] if {op.kind, inverse}.isdisjoint({OpKind.READ}) else ()
    opposite = msgspec.structs.replace(op, kind=inverse, arguments=kept)
    records.insert(index + 1 + draws.below(len(records) - index), encode_op(opposite))


def _nudge(records: Records, draws: Draws, target: _Target) -> None:
    _rewrite(records, draws.below(len(records)), target, lambda op: _nudge_range(op, draws))


def _change_argument(op: Op, draws: Draws) -> Op:
    """`op` with one argument at an edge, one off, or with one bit flipped."""
    if not op.arguments:
        return op
    position = draws.below(len(op.arguments))
    sort = SPECS[op.kind].arguments[position].sort
    value = op.arguments[position]
    choice = draws.below(4)
    if choice < 2:
        edges = BOUNDARIES[sort] + LATER_EDGES.get((op.kind, position), ())
        value = edges[draws.below(len(edges))]
    elif choice == 2:
        value += 1 if draws.below(2) else -1
    else:
        value ^= 1 << draws.below(64)
    arguments = list(op.arguments)
    arguments[position] = value & ARGUMENT_MASKS[sort]
    return msgspec.structs.replace(op, arguments=tuple(arguments))


def _argument(records: Records, draws: Draws, target: _Target) -> None:
    _rewrite(records, draws.below(len(records)), target, lambda op: _change_argument(op, draws))


def _change_posture(op: Op, draws: Draws, vcpus: int) -> Op:
    """`op` on another vCPU, in another mode or CPL, or by the other instruction."""
    choice = draws.below(4)
    if choice == 0 or not SPECS[op.kind].has_mode:
        return msgspec.structs.replace(op, vcpu=draws.below(vcpus))
    if choice == 1 and op.kind is OpKind.HYPERCALL:
        return msgspec.structs.replace(op, instruction=Instruction(1 - op.instruction))
    if choice == 2:
        return msgspec.structs.replace(op, mode=Mode.LONG64, cpl=0)
    mode = Mode(draws.below(len(Mode)))
    cpl = 0 if mode is Mode.REAL16 else draws.below(4)
    return msgspec.structs.replace(op, mode=mode, cpl=cpl)


def _posture(records: Records, draws: Draws, target: _Target) -> None:
    index = draws.below(len(records))
    _rewrite(records, index, target, lambda op: _change_posture(op, draws, target.vcpus))


_MUTATIONS: Final[tuple[_Mutation, ...]] = (
    _insert,
    _insert,
    _delete,
    _swap,
    _repeat,
    _duplicate,
    _invert,
    _nudge,
    _argument,
    _argument,
    _posture,
)


def split_records(data: bytes) -> Records:
    """The whole records of `data`."""
    end = len(data) // RECORD_SIZE * RECORD_SIZE
    return [data[offset : offset + RECORD_SIZE] for offset in range(0, end, RECORD_SIZE)]


def _join(records: Records, max_size: int) -> bytes:
    return b"".join(records[: max_size // RECORD_SIZE])


def mutate_bytes(
    data: bytes,
    max_size: int,
    seed: int,
    header: Header = _DEFAULT_HEADER,
    kinds: frozenset[OpKind] = ALL_KINDS,
) -> bytes:
    """`data` after one to four mutations: whole records, at most `max_size` bytes.

    The signature of a libFuzzer custom mutator, once `header` and `kinds` are bound. Never empty
    when `max_size` holds a record; with less room the result is empty. Where one
    side is hostile, three results in four are new programs of `generate.hostile_flows`.
    """
    draws = Draws(seed)
    flows = hostile_flows(kinds)
    if flows and draws.below(4):
        flow = flows[draws.below(len(flows)) if draws.below(2) else 0]
        ops = [op for op in flow(random.Random(draws.next()), header) if op.kind in kinds]
        return _join(split_records(encode_ops(ops)), max_size)
    target = _Target(decoder_for(header, kinds), header.vcpus, tuple(sorted(kinds)))
    records = split_records(data)
    if not records:
        _insert(records, draws, target)
    for _ in range(1 << draws.below(3)):
        _MUTATIONS[draws.below(len(_MUTATIONS))](records, draws, target)
    return _join(records, max_size)


def crossover_bytes(first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
    """A head of `first`, a run of `second` and, half the time, the tail of `first`.

    The signature of a libFuzzer custom crossover: whole records, at most `max_size` bytes.
    """
    draws = Draws(seed)
    one, two = split_records(first), split_records(second)
    cut = draws.below(len(one) + 1)
    start = draws.below(len(two) + 1)
    end = start + draws.below(len(two) - start + 1)
    tail = one[cut:] if draws.below(2) else []
    child = one[:cut] + two[start:end] + tail
    return _join(child or one or two, max_size)
