# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's record is what it answered: a raw notification that was answered 0 set exactly its
range, to what attribute bit 4 says, and nothing else changed anything.

Source: Documentation/virt/kvm/x86/hypercalls.rst, KVM_HC_MAP_GPA_RANGE; H.4 item 7, K3-d. Written
without calling any host model. Applies to hosts with `contract_state`, and to operations that are
no conversions: after those the check `status` compares the same and says more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK, gpa_text
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.checks.base import PAGE_ENC_CONTRACTS, OpView, Oracle, Violation, not_as_told
from guestemu.events.exits import AnsweredExit
from guestemu.host.base import Host
from guestemu.program.ops import OpKind


def _reaches_user_space(record: AnsweredExit) -> tuple[int, int] | None:
    """First frame and page count of a notification that K3-c lets through to user space."""
    mask = U64_MASK if record.is_64bit else U32_MASK
    gpa, pages = record.args[0] & mask, record.args[1] & mask
    if record.cpl or record.nr & mask != KVM_HC_MAP_GPA_RANGE or gpa & PAGE_MASK or not pages:
        return None
    first = gpa >> PAGE_SHIFT
    return (first, pages) if first + pages <= U64_MASK else None


class RecordCheck(Oracle):
    """Applies every notification of the operation to the host's map from before it, and compares.

    Ordered answers (`OpView.injected`) record nothing. Frames beyond RAM have no bit, and what the
    host records of `Host.open_frames` is its own business. Memory that is plugged is private.
    """

    name = "record"
    kinds: frozenset[OpKind] | None = None
    demands: ClassVar[Mapping[str, str]] = {
        "record": (
            "The host's record says of each page what the last hypercall about it said, and "
            "changes for nothing else; of memory that is plugged it says private."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "record": (
            "The host's record is not what it was told: the page will be migrated with the "
            "wrong status."
        ),
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts that are held to no patch set of KVM_HC_PAGE_ENC_STATUS."""
        return host.contract not in PAGE_ENC_CONTRACTS

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.frames is not None or not view.host.contract_state:
            return ()
        if not view.exits:
            return self._plugged(view)
        status = view.host.private_map()
        told = self._told(view)
        expected = not_as_told(status, view.host_before, told, view.host.open_frames)
        return () if expected is None else (self._explain(view, status, expected),)

    def _plugged(self, view: OpView) -> Iterable[Violation]:
        """Memory that was plugged is all private (K2-a)."""
        if view.op.kind is not OpKind.HOST_COMMIT_SLOT or view.outcome.value != 0:
            return
        gpa, size = (argument << PAGE_SHIFT for argument in view.op.arguments)
        status = view.host.private_map()
        for slot in view.host.plugged:
            first, end = slot.gpa >> PAGE_SHIFT, slot.end >> PAGE_SHIFT
            if slot.cut(gpa, size)[1] and not status[first:end].all():
                frame = status.find(0, first, end)
                message = f"host: {gpa_text(frame)} was plugged and is recorded as shared"
                yield Violation(self.name, view.index, message, "K2-a")

    def _told(self, view: OpView) -> list[tuple[int, int, bool]]:
        """What the answered notifications say: first frame, frame after the last, private."""
        told: list[tuple[int, int, bool]] = []
        left = view.injected[1]
        for record in view.exits:
            if not record.is_hypercall:
                continue
            place = _reaches_user_space(record)
            if place is None:
                continue
            if left:
                left -= 1
                continue
            if record.ret != 0:
                continue
            first, pages = place
            told.append((first, first + pages, bool(record.args[2] & MAP_GPA_RANGE_ENCRYPTED)))
        return told

    def _explain(self, view: OpView, status: bitarray, expected: bitarray) -> Violation:
        difference = status ^ expected
        frame = difference.index(1)
        total = difference.count()
        word = "private" if status[frame] else "shared"
        return Violation(
            self.name,
            view.index,
            f"host: {gpa_text(frame)} is recorded as {word}, which no answered notification says "
            f"({total} frame{'s differ' if total > 1 else ' differs'})",
            "H.4 item 7, K3-d",
        )
