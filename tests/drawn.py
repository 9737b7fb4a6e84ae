# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs as a seed decides them, and the mutator on ops instead of on records."""

from __future__ import annotations

import random

from guestemu.program.binary import ALL_KINDS, RECORD_SIZE, decode_ops, encode_ops
from guestemu.program.generate import generate_ops
from guestemu.program.mutate import crossover_bytes, mutate_bytes
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, Program


def generate_program(seed: int, header: Header, length: int = 12) -> Program:
    """A program of `length` ops that `seed` alone decides."""
    return Program(header, generate_ops(random.Random(seed), header, ALL_KINDS, length))


def mutate_ops(
    ops: tuple[Op, ...],
    header: Header,
    seed: int,
    kinds: frozenset[OpKind] = ALL_KINDS,
    max_ops: int = 64,
) -> tuple[Op, ...]:
    """`ops` after one to four mutations."""
    data = mutate_bytes(encode_ops(ops), max_ops * RECORD_SIZE, seed, header, kinds)
    return decode_ops(data, header, kinds)


def crossover_ops(
    first: tuple[Op, ...], second: tuple[Op, ...], header: Header, seed: int
) -> tuple[Op, ...]:
    """A child of two programs' ops."""
    data = crossover_bytes(encode_ops(first), encode_ops(second), 64 * RECORD_SIZE, seed)
    return decode_ops(data, header)
