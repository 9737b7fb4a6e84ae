# SPDX-License-Identifier: GPL-2.0-or-later
"""Result codes equal the reference: what the documentation and the real KVM answer (K3-c, A.3).

Written from the facts alone and without calling any host model, so that a model's error shows.
Applies to hosts that claim the MAP_GPA_RANGE contract (`Host.contract`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.errno import EBUSY, EIO, ENOMEM, EPERM
from guestemu.abi.hypercalls import (
    KVM_EINVAL,
    KVM_ENOSYS,
    KVM_EPERM,
    KVM_HC_CLOCK_PAIRING,
    KVM_HC_KICK_CPU,
    KVM_HC_MAP_GPA_RANGE,
    KVM_HC_SCHED_YIELD,
    KVM_HC_SEND_IPI,
    KVM_HC_VAPIC_POLL_IRQ,
)
from guestemu.checks.base import PAGE_ENC_CONTRACTS, OpView, Oracle, Violation
from guestemu.events.exits import AnsweredExit, MapGpaRangeExit
from guestemu.host.base import Host
from guestemu.machine.exits import MEMORY_FAULT
from guestemu.program.ops import OpKind

CONTRACT: Final = "map-gpa-range"

OWN_HYPERCALLS: Final = frozenset(
    {
        KVM_HC_VAPIC_POLL_IRQ,
        KVM_HC_KICK_CPU,
        KVM_HC_CLOCK_PAIRING,
        KVM_HC_SEND_IPI,
        KVM_HC_SCHED_YIELD,
    }
)
"""Hypercalls that KVM answers itself, with one thing or another."""
_CONVERSION_RESULTS: Final = frozenset({0, -ENOMEM, -EBUSY, -EPERM, -EIO})
_CONVERSIONS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})
_EARLY: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})


class Reference:
    """The answers that the contract demands, exit by exit.

    `injected` and `count` are what user space was told to answer the next exits that reach it.
    `frames` are the frames of RAM from GPA 0 on, `open_frames` those of them that are no RAM: user
    space decides about a range that leaves RAM, and KVM passes its answer on (K3-f).
    """

    def __init__(
        self,
        injected: int,
        count: int,
        frames: int = U64_MASK,
        open_frames: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self._injected = injected
        self._open = open_frames
        self._left = count
        self._frames = frames

    @property
    def left(self) -> int:
        """Ordered answers that no exit has used up yet."""
        return self._left

    def answer(self, record: AnsweredExit) -> int | None:
        """The RAX for a hypercall; None where the contract leaves it open."""
        nr, a0, a1 = record.nr, record.args[0], record.args[1]
        mask = U64_MASK
        if not record.is_64bit:
            nr, a0, a1, mask = nr & U32_MASK, a0 & U32_MASK, a1 & U32_MASK, U32_MASK
        if record.cpl:
            answer = -KVM_EPERM
        elif nr == KVM_HC_MAP_GPA_RANGE:
            decided = self._map_gpa_range(a0, a1)
            if decided is None:
                return None
            answer = decided
        elif nr in OWN_HYPERCALLS:
            return None
        else:
            answer = -KVM_ENOSYS
        return answer & mask

    def _map_gpa_range(self, gpa: int, pages: int) -> int | None:
        gfn = gpa >> PAGE_SHIFT
        if gpa & PAGE_MASK or pages == 0 or gfn + pages > U64_MASK:
            return -KVM_EINVAL
        if self._left:
            self._left -= 1
            return self._injected
        if gfn + pages > self._frames:
            return None
        for first, end in self._open:
            if gfn < end and gfn + pages > first:
                return None
        return 0


def is_open(record: AnsweredExit) -> bool:
    """Whether the contract leaves the answer to a hypercall open wherever its range lies."""
    return Reference(0, 0).answer(record) is None


def answers_left(injected: int, count: int, records: Iterable[AnsweredExit]) -> int:
    """How many of `count` ordered answers are left after `records`: only an exit that reaches user
    space uses one up (K3-c step 7)."""
    reference = Reference(injected, count)
    for record in records:
        if record.is_hypercall:
            reference.answer(record)
    return reference.left


class ResultCheck(Oracle):
    """Hypercall answers and return values of conversions are among those that the sources give."""

    name = "results"
    kinds: frozenset[OpKind] | None = None
    demands: ClassVar[Mapping[str, str]] = {
        "results": "Hypercalls and conversions return values that the kernel's sources give.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "results": "The contract and the real KVM give another answer here.",
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts that are held to no patch set of KVM_HC_PAGE_ENC_STATUS."""
        return host.contract not in PAGE_ENC_CONTRACTS

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        found: list[Violation] = []
        if view.exits and view.host.contract == CONTRACT and not view.host.has_failing_kernel:
            self._judge_answers(view, found)
        value = view.outcome.value
        if value is None:
            return found
        kind = view.op.kind
        if kind in _CONVERSIONS:
            if value not in _CONVERSION_RESULTS:
                found.append(Violation(self.name, view.index, f"returned {value}", "A.3"))
        elif kind in _EARLY and value not in {0, 1}:
            message = f"returned {value}, expected 0 or 1"
            found.append(Violation(self.name, view.index, message, "A8"))
        return found

    def _judge_answers(self, view: OpView, found: list[Violation]) -> None:
        frames = len(view.host_before)
        reference = Reference(*view.injected, frames=frames, open_frames=view.host.open_frames)
        for record in view.exits:
            ret = record.ret
            if ret is None or not record.is_hypercall:
                continue
            if isinstance(record, MapGpaRangeExit) and record.origin == MEMORY_FAULT:
                continue  # no contract says what user space does then
            expected = reference.answer(record)
            if expected is not None and ret & U64_MASK != expected:
                message = (
                    f"hypercall {record.nr:#x}({', '.join(map(hex, record.args))}) at CPL "
                    f"{record.cpl} was answered {ret & U64_MASK:#x}, expected {expected:#x}"
                )
                found.append(Violation(self.name, view.index, message, "K3-c"))
                return
