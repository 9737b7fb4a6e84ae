# SPDX-License-Identifier: GPL-2.0-or-later
"""A status hypercall that is executed twice: C22.

KVM moves RIP on only when user space has completed the exit. A vCPU that is saved before that makes
the hypercall again where it is restored (K3-m). Run on the models of KVM's ABI generations.
"""

from __future__ import annotations

from itertools import product
from typing import Final

import msgspec

from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.host_bench import MODEL, BenchedHost, HostBench, TimedCall
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide

_UNIVERSE: Final = 4
"""Pages that the calls are about."""

SETTERS: Final = tuple(
    BenchedHost(name)
    for name in ("map-gpa-range", "qemu-v4", "qemu-10.2", "bitmap-v6", "bitmap-v8")
)
"""Hosts that set the status to a value and answer 0."""

COUNTER: Final = BenchedHost("shared-list-v10")
"""A host whose answer is a change of a count (K2-d)."""


class _Repeats(msgspec.Struct, frozen=True):
    sequences: int
    records: int
    answers: int
    first: tuple[TimedCall, ...]


def _calls() -> list[TimedCall]:
    return [
        TimedCall(start, end, private)
        for start in range(_UNIVERSE)
        for end in range(start + 1, _UNIVERSE + 1)
        for private in (False, True)
    ]


def _repeat_all(choice: BenchedHost) -> _Repeats:
    """Every sequence of two calls on four pages, with the second made once and twice."""
    bench = HostBench(choice)
    records = answers = sequences = 0
    first: tuple[TimedCall, ...] = ()
    for pair in product(_calls(), repeat=2):
        once, _ = bench.run(pair)
        twice, given = bench.run((*pair, pair[-1]))
        sequences += 1
        differs = given[-1] != given[-2]
        records += once != twice
        answers += differs
        if differs and not first:
            first = pair
    return _Repeats(sequences, records, answers, first)


def re_execution(
    _lab: Lab, setters: tuple[BenchedHost, ...] = SETTERS, counter: BenchedHost = COUNTER
) -> ClaimResult:
    """C22: a hypercall that is made again, as after a migration in the middle of its exit."""
    by_value = {choice: _repeat_all(choice) for choice in setters}
    by_count = _repeat_all(counter)
    is_idempotent = not any(found.records or found.answers for found in by_value.values())
    counts = by_count.records + by_count.answers
    return ClaimResult(
        verdict=decide(
            confirmed=is_idempotent and not counts,
            refuted=not is_idempotent,
            conditional=is_idempotent and counts > 0,
        ),
        condition=(
            "the host sets the status to a value; where the answer is a change of a count, as in "
            "patch set v10, the repeated call is answered differently"
        ),
        evidence=tuple(
            Evidence(
                f"{choice.title}: {what}",
                value,
                "sequences",
                f"of {found.sequences}: two calls on {_UNIVERSE} pages, the second once or twice",
            )
            for choice, found in (*by_value.items(), (counter, by_count))
            for what, value in (
                ("another record", found.records),
                ("another answer", found.answers),
            )
        ),
        guests=(MODEL,),
        witnesses=(
            ClaimWitness(f"{counter.title}: {', then '.join(map(str, by_count.first))}, twice"),
        )
        if by_count.first
        else (),
    )


CLAIMS: Final = (
    Claim(
        "C22",
        "The hypercall can be executed again without harm.",
        "implied by KVM: RIP moves on only when user space has completed the exit (K3-m)",
        re_execution,
        real_test="A KVM with the patch set, its VMM migrating before it completes the exit",
    ),
)
