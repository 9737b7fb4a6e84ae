# SPDX-License-Identifier: GPL-2.0-or-later
"""Files programs as a campaign does, without choosing them by chance."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import msgspec

from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.findings import FindingBook
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.targets import find_target
from guestemu.campaign.triage.identify import Finding
from guestemu.host.base import Host
from guestemu.program.binary import RECORD_SIZE, decoder_for, encode_ops
from guestemu.program.ops import Op, OpKind, canonical_op

CONVERSION = find_target("conversion")


def call(gpa: int, pages: int, attributes: int = 0, nr: int = 12, cpl: int = 0) -> Op:
    return Op(OpKind.HYPERCALL, (nr, gpa, pages, attributes, 0), cpl=cpl)


def make_book(host: Host) -> FindingBook:
    target = msgspec.structs.replace(CONVERSION, limit=None)
    return FindingBook(Executor(target, target.header, target.kinds, Feedback(), host))


def file(book: FindingBook, programs: Iterable[Sequence[Op]]) -> list[Finding]:
    """The findings of `programs`, new ones of each in turn."""
    found: list[Finding] = []
    for program in programs:
        ops = tuple(map(canonical_op, program))
        violations = book._executor.run(ops)
        for case in (book.meet(ops, violations) or []) if violations else []:
            found += book.settle(case, 0.0)[0]
    return found


def variants(program: Sequence[Op], count: int, seed: int) -> list[tuple[Op, ...]]:
    """`program` and what mutation makes of it, as a campaign near it would."""
    kinds = frozenset({op.kind for op in program} | {OpKind.HYPERCALL})
    mutator = Mutator(CONVERSION.header, kinds)
    decode = decoder_for(CONVERSION.header, kinds).decode
    rng = random.Random(seed)
    data = encode_ops([canonical_op(op) for op in program])
    made = [tuple(program)]
    for _ in range(count):
        other = mutator.mutate(data, 3 * RECORD_SIZE, rng.getrandbits(32))
        made.append(decode(other))
    return made
