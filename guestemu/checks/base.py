# SPDX-License-Identifier: GPL-2.0-or-later
"""What a check sees, and what it says.

A check is an object with `name` and `after(view)`. It reads the operation that just ended, the
guest's page tables as `LeafMap` has them and the host's record, and yields violations. It never
changes anything, and a violation is a value, not an exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, Protocol

import msgspec
from bitarray import bitarray

from guestemu.abi.regions import Region
from guestemu.events.base import Event
from guestemu.events.exits import AnsweredExit
from guestemu.events.memory import LeafChange
from guestemu.events.operations import Violation
from guestemu.guest.base import CallOutcome, Guest
from guestemu.host.base import Host
from guestemu.host.kvm.map_gpa_lies import MAP_GPA_LIES
from guestemu.host.marked_bits import MarkedBits
from guestemu.program.ops import Op, OpKind

__all__ = [
    "CONVERSION_KINDS",
    "PAGE_ENC_CONTRACTS",
    "Check",
    "OpView",
    "Oracle",
    "Violation",
    "demands",
    "explanations",
    "not_as_told",
]


class OpView(msgspec.Struct):
    """One finished operation.

    The `*_before` maps are from before the operation, and stay until the next one begins: who keeps
    them copies them. The maps after it are the guest's and the host's own. `frames` is the range
    (first frame, count) that a conversion was asked for; `injected` the answer that user space was
    told to give and how often; `free_frames` the frames
    in the page allocator (after DMA operations only). `events` is everything that happened, in the
    order of time. Parts of it are `exits`, `flips` (changes of leaves) and `emitted`, the machine's
    other events (page states, requests through a GHCB), each with the number of exits before it.
    """

    index: int
    op: Op
    outcome: CallOutcome
    guest: Guest
    host: Host
    exits: list[AnsweredExit]
    flips: list[LeafChange]
    host_before: bitarray
    private_before: bitarray
    moved_before: int
    frames: tuple[int, int] | None
    wants_private: bool
    region: Region
    ready_before: bool
    injected: tuple[int, int]
    free_frames: bitarray | None
    events: Sequence[Event] = ()
    emitted: Sequence[tuple[int, Event]] = ()


CONVERSION_KINDS: Final = frozenset(
    {
        OpKind.SET_MEMORY_ENCRYPTED,
        OpKind.SET_MEMORY_DECRYPTED,
        OpKind.EARLY_SET_MEMORY_ENCRYPTED,
        OpKind.EARLY_SET_MEMORY_DECRYPTED,
    }
)
"""The operations that convert a range of their own (`OpView.frames`)."""


PAGE_ENC_CONTRACTS: Final = frozenset({"page-enc-status", "page-enc-status-2019"})
"""The contracts (`Host.contract`) of KVM_HC_PAGE_ENC_STATUS, which was never merged."""


def vmm_lies(view: OpView) -> bool:
    """Whether the guest is a TD whose VMM lies at MapGPA: the host's KVM does, or an operation has
    had it begin."""
    td = view.guest.td
    return td is not None and bool(td.lie or view.host.lie in MAP_GPA_LIES)


def not_as_told(
    after: bitarray,
    before: bitarray,
    told: list[tuple[int, int, bool]],
    free: Sequence[tuple[int, int]] = (),
) -> bitarray | None:
    """The map that `after` should be, or None if it is that: `before` with each range of `told`
    (first frame, frame after the last, value) set in turn, without what lies beyond its end. In the
    ranges `free` (first frame, frame after the last) it may be anything.

    A map has a bit for every frame of the guest: only the ranges are copied, `before` is changed
    for the comparison and changed back. A record that knows where it was written since
    `before` is asked first.
    """
    if isinstance(after, MarkedBits) and after.is_as_told(before, told):
        return None
    total = len(before)
    kept: list[tuple[int, bitarray]] = []
    for first, end, value in told:
        kept.append((first, before[first : min(end, total)]))
        before[first : min(end, total)] = value
    expected = None if after == before else before.copy()
    for first, was in reversed(kept):
        before[first : first + len(was)] = was
    if expected is None:
        return None
    for first, end in free:
        expected[first:end] = after[first:end]
    return None if after == expected else expected


class Check(Protocol):
    """One property."""

    name: str

    @property
    def kinds(self) -> frozenset[OpKind] | None:
        """The kinds of op that it can say something about (None: every kind)."""

    def after(self, view: OpView) -> Iterable[Violation]:
        """The violations that the operation caused."""


class Oracle(ABC):
    """Base of checks: what is said about one beside its judgement, all in its own module.

    The first sentence of the class's docstring is the property; each violation names the facts that
    demand it.
    """

    name: str
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {}
    """What must hold, in a sentence, by the violation's name."""

    explanations: ClassVar[Mapping[str, str]] = {}
    """What a violation means for the guest, in a sentence, by the violation's name."""

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Whether it can say something about runs on `host`; others are not asked, to save time."""
        return True

    @abstractmethod
    def after(self, view: OpView) -> Iterable[Violation]:
        """See `Check`."""


def demands() -> Mapping[str, str]:
    """What every check that was imported demands, by the violation's name."""
    return {name: text for kind in _oracles() for name, text in kind.demands.items()}


def explanations() -> Mapping[str, str]:
    """The explanations of every check that was imported, by the violation's name."""
    return {name: text for kind in _oracles() for name, text in kind.explanations.items()}


def _oracles() -> Iterator[type[Oracle]]:
    pending = Oracle.__subclasses__()
    while pending:
        kind = pending.pop()
        yield kind
        pending += kind.__subclasses__()
