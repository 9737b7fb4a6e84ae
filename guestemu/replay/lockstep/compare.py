# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts' sides of one operation, compared by meaning."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import gpa_text
from guestemu.program.ops import OpKind
from guestemu.replay.lockstep.known import ANSWER, END, READY, STATUS, VALUE, explain
from guestemu.replay.lockstep.side import Side


class Divergence(msgspec.Struct, frozen=True):
    """Operation `op` means something else on two hosts.

    `hosts` are their labels, `aspect` what differs, `values` what each has, in words; `known` the
    key of the known difference it comes from with its `fact` and a `reason`, all empty where
    nothing explains it.
    """

    op: int
    hosts: tuple[str, str]
    aspect: str
    values: tuple[str, str]
    known: str = ""
    fact: str = ""
    reason: str = ""

    @property
    def is_explained(self) -> bool:
        """Whether a known difference causes it."""
        return bool(self.known)


def compare(index: int, one: Side, other: Side) -> Iterator[Divergence]:
    """Every aspect in which operation `index` differs.

    For the record and the readiness only where the operation makes them part: that they still
    differ since an earlier operation is not said twice, that they agree again is not a difference.
    """
    for aspect, values in _differences(one, other):
        known = explain(aspect, one, other)
        hosts = (one.traits.label, other.traits.label)
        if known is None:
            yield Divergence(index, hosts, aspect, values)
        else:
            yield Divergence(index, hosts, aspect, values, known.key, known.fact, known.sentence)


def _differences(one: Side, other: Side) -> Iterator[tuple[str, tuple[str, str]]]:
    if one.end != other.end:
        yield END, (one.end, other.end)
    if one.is_stopped or other.is_stopped:
        return
    if one.exits is not other.exits and one.rax != other.rax:
        yield ANSWER, _answer_words(one, other)
    if one.op.kind is not OpKind.HYPERCALL and one.value != other.value and one.end == other.end:
        yield VALUE, (str(one.value), str(other.value))
    if _parted(one, other).any():
        yield STATUS, _status_words(one, other)
    if one.ready != other.ready and one.ready_before == other.ready_before:
        yield READY, (_ready_word(one.ready), _ready_word(other.ready))


def _answer_words(one: Side, other: Side) -> tuple[str, str]:
    """The first answer that differs."""
    mine, theirs = one.answers, other.answers
    for number, (left, right) in enumerate(zip(mine, theirs, strict=False)):
        if left != right:
            return f"{left} to exit {number}", f"{right} to exit {number}"
    return f"{len(mine)} hypercalls", f"{len(theirs)} hypercalls"


def _parted(one: Side, other: Side) -> bitarray:
    """The frames on which the hosts agreed before the operation and do not any more. What a user's
    host records of a hole or of ROM is its own business, as for the check `record`."""
    if one.after == other.after:
        return bitarray()
    parted = (one.after ^ other.after) & ~(one.before ^ other.before)
    for side in (one, other):
        if side.traits.is_users:
            for first, end in side.traits.open_frames:
                parted[first:end] = False
    return parted


def _status_words(one: Side, other: Side) -> tuple[str, str]:
    """The first frame that parted, and how many more."""
    changed = _parted(one, other)
    frame, count = changed.index(1), changed.count()
    more = f" and {count - 1} more" if count > 1 else ""

    def word(side: Side) -> str:
        return f"{gpa_text(frame)} {'private' if side.after[frame] else 'shared'}{more}"

    return word(one), word(other)


def _ready_word(ready: bool) -> str:
    return "migration allowed" if ready else "migration not allowed"
