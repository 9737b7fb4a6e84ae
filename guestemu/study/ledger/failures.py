# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made to fail, and the points at which it can.

A step is the n-th time that a flow reaches such a point: the n-th hypercall, the n-th write of
MIGRATION_CONTROL, the n-th page that the notifier looks up, the n-th leaf that is changed, the
n-th page-table page that a split allocates, the n-th page of the range.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import EAGAIN, EBUSY, EINVAL
from guestemu.abi.hypercalls import KVM_EINVAL, KVM_ENOSYS


class Point(enum.Enum):
    """Where a flow can fail."""

    ANSWER = "hypercall"
    """The host's answer to a notification; the host records nothing."""
    MSR = "wrmsr"
    """A write of MIGRATION_CONTROL: #GP (K5-b, A47)."""
    LOOKUP = "lookup"
    """lookup_address() called by the notifier finds nothing (A13)."""
    CPA = "cpa"
    """The change of one leaf fails with -EINVAL, what was changed before stays (A19)."""
    SPLIT = "split"
    """A split gets no page-table page, -ENOMEM (A19)."""
    PAGE = "page"
    """A page of the range has no entry, or one without PRESENT, before the conversion (A26c)."""


class Failure(msgspec.Struct, frozen=True):
    """One kind of failure. `value` is the answer in RAX, or 1 for an entry that is all zero."""

    name: str
    point: Point
    value: int = 0


NOTHING: Final = "none"
"""The name of the row without a failure, which shows what the flow does by itself."""

_GARBAGE: Final = 0x5EED_F00D

FAILURES: Final = (
    Failure("host-enosys", Point.ANSWER, -KVM_ENOSYS & U64_MASK),
    Failure("host-einval", Point.ANSWER, -KVM_EINVAL & U64_MASK),
    Failure("host-ebusy", Point.ANSWER, -EBUSY & U64_MASK),
    Failure("host-garbage", Point.ANSWER, _GARBAGE),
    Failure("msr-gp", Point.MSR),
    Failure("lookup", Point.LOOKUP),
    Failure("cpa", Point.CPA),
    Failure("split", Point.SPLIT),
    Failure("hole", Point.PAGE, 1),
    Failure("absent", Point.PAGE, 0),
)
"""Those of a plain SEV guest. -EBUSY is no KVM answer (constant table), but nothing keeps a VMM
from giving it."""

_EXIT_ANSWERS: Final = (
    Failure("host-eagain", Point.ANSWER, EAGAIN),
    Failure("host-einval", Point.ANSWER, EINVAL),
    Failure("host-minus-einval", Point.ANSWER, -EINVAL & U64_MASK),
    Failure("host-garbage", Point.ANSWER, _GARBAGE),
)
"""Answers to a page-state change or MapGPA, where KVM 7.2 takes 0, EAGAIN and EINVAL (N20, T25)."""


def failures_of(sev: str) -> tuple[Failure, ...]:
    """The failures of a guest of kind `sev`, the word of `--sev`."""
    if sev in {"sev", "es"}:
        return FAILURES
    return (*_EXIT_ANSWERS, *(f for f in FAILURES if f.point is not Point.ANSWER))


class FaultPoint:
    """Counts how often a point is reached and says when to fail there.

    `count` are the times since `begin`; `arm` orders a failure at one of them, counted from 0.
    """

    __slots__ = ("_at", "count", "has_failed")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Nothing is ordered, and counting starts over."""
        self.count = 0
        self._at = -1
        self.has_failed = False

    def arm(self, step: int) -> None:
        """The `step`-th time from now on fails."""
        self.begin()
        self._at = step

    def disarm(self) -> None:
        """What was ordered and did not happen yet is withdrawn; the count stays."""
        self._at = -1

    def hit(self) -> bool:
        """The point is reached; whether it has to fail."""
        fails = self.count == self._at
        self.count += 1
        self.has_failed = self.has_failed or fails
        return fails
