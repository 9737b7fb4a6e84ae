# SPDX-License-Identifier: GPL-2.0-or-later
"""Attributes, backings and device map of a VM with guest_memfd agree after each conversion.

A frame that the guest was told is private has no shared copy left and is not mapped for a device; a
frame that it was told is shared has no private page left, which would come back with the next
conversion (GM3). What is freed on the way lies in the converted range: elsewhere a page that the
guest uses keeps its content. The attributes themselves are compared by the check `record`. Looks at
the frames that the VMM's calls of the operation name. Source: GM1, GM3, V2, V4.

Where memory converts in place, a conversion can fail half-way: the range leaves the device map
first, and the file may be converted up to the page that is in use. Whatever the guest was told, the
device map then follows the attributes: a shared frame is mapped for the device, if the VMM has
mapped any, and a private one is not (GM10).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import gpa_text
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.host.base import Host
from guestemu.host.kvm.guest_memory import GuestMemory, HasGuestMemory, VmmCall
from guestemu.host.kvm.in_place_memory import InPlaceMemory
from guestemu.program.ops import OpKind

_UNPLUG: Final = OpKind.UNPLUG_SLOT


class GuestMemoryCheck(Oracle):
    """One violation for each kind of disagreement in the frames that an operation converted."""

    name = "guest-memory"
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {
        "guest-memory": (
            "After a conversion, a private frame has no shared copy and no mapping for a "
            "device, and a shared frame no private page; the pages of frames outside of the "
            "converted range stay. Memory that converts in place is mapped for a device exactly "
            "where it is shared, also after a refusal. Memory that was unplugged is mapped for no "
            "device."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "guest-memory": (
            "The page comes back with old content at its next conversion, a device goes on "
            "reaching it, or what the guest holds in it is lost."
        ),
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts with guest_memfd."""
        return isinstance(host, HasGuestMemory)

    def __init__(self) -> None:
        self._host: Host | None = None
        self._owner: HasGuestMemory | None = None
        self._seen = 0

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class. An operation whose notification was refused promises nothing."""
        host = view.host
        if host is not self._host:
            self._host = host
            self._owner = host if isinstance(host, HasGuestMemory) else None
        if self._owner is None:
            return ()
        memory = self._owner.guest_memory
        if view.op.kind is _UNPLUG:
            return self._judge_unplugged(view, memory)
        count, seen = memory.call_count, self._seen
        if view.index == 0 or count < seen:
            seen = 0
        self._seen = count
        if count == seen or not memory.take_news():
            return ()
        calls = memory.calls
        lost = memory.take_lost()
        violations = list(self._judge_device(view.index, memory, calls[seen:]))
        if any(record.ret for record in view.exits):
            return violations
        ranges = list(_ranges(memory, calls[seen:], is_done=True))
        for first, end in ranges:
            if _is_suspect(memory, first, min(end, memory.frames)):
                violations.extend(self._judge(view.index, memory, first, end))
        if lost is not None:
            violations.extend(self._judge_lost(view.index, memory, lost, ranges))
        return violations

    def _judge(self, op: int, memory: GuestMemory, first: int, end: int) -> Iterator[Violation]:
        end = min(end, memory.frames)
        convertible = memory.private_backing[first:end]
        private = memory.attributes[first:end] & convertible
        shared = convertible & ~private
        mapped = private & memory.device_map[first:end]
        if isinstance(memory, InPlaceMemory):
            mapped.setall(False)  # _judge_device() looks at it
        for wrong, what, fact in (
            (
                private & memory.shared_pages[first:end],
                "is private and keeps its shared copy",
                "GM3",
            ),
            (
                shared & memory.private_pages[first:end],
                "is shared and keeps its private page",
                "GM3",
            ),
            (mapped, "is private and mapped for a device", "V2"),
        ):
            if wrong.any():
                yield Violation(self.name, op, _text(first, wrong, what), fact)

    def _judge_device(
        self, op: int, memory: GuestMemory, calls: Iterable[VmmCall]
    ) -> Iterator[Violation]:
        """One violation for the first range, converted or not, that is not mapped as it should."""
        if not isinstance(memory, InPlaceMemory) or not memory.has_device:
            return
        for first, end in _ranges(memory, calls, is_done=False):
            wrong = memory.attributes[first:end] ^ ~memory.device_map[first:end]
            wrong &= memory.private_backing[first:end]
            if wrong.any():
                is_private = memory.attributes[first + wrong.index(1)]
                what = "private and mapped" if is_private else "shared and not mapped"
                text = _text(first, wrong, f"is {what} for a device")
                yield Violation(self.name, op, text, "GM10")
                return

    def _judge_unplugged(self, view: OpView, memory: GuestMemory) -> Iterator[Violation]:
        """No device reaches what is gone; the VMM's calls are judged with those to come."""
        gone = memory.device_map & ~(memory.private_backing | memory.shared_backing)
        if view.outcome.value == 0 and gone.any():
            text = _text(0, gone, "is gone and mapped for a device")
            yield Violation(self.name, view.index, text, "V2")

    def _judge_lost(
        self, op: int, memory: GuestMemory, lost: bitarray, converted: list[tuple[int, int]]
    ) -> Iterator[Violation]:
        for first, end in converted:
            lost[first:end] = False
        for wrong, what in (
            (lost & ~memory.attributes, "is shared, was not converted, and its copy was freed"),
            (lost & memory.attributes, "is private, was not converted, and its page was freed"),
        ):
            if wrong.any():
                yield Violation(self.name, op, _text(0, wrong, what), "GM3")


def _ranges(
    memory: GuestMemory, calls: Iterable[VmmCall], is_done: bool
) -> Iterator[tuple[int, int]]:
    """The frames, first and end, of the conversions among `calls`; `is_done`: of those done."""
    for call in calls:
        span = memory.range_of(call)
        if span is not None and not (is_done and call.result):
            yield span


def _is_suspect(memory: GuestMemory, first: int, end: int) -> bool:
    """Whether a frame from `first` to `end` may be wrong: some are private, and a shared copy or a
    device mapping is there, or some are shared, and a private page is. Cheaper than to compare."""
    is_private = memory.attributes.find(1, first, end) >= 0
    if is_private and memory.shared_pages.find(1, first, end) >= 0:
        return True
    if is_private and memory.device_map.find(1, first, end) >= 0:
        return True
    is_shared = memory.attributes.find(0, first, end) >= 0
    return is_shared and memory.private_pages.find(1, first, end) >= 0


def _text(first: int, wrong: bitarray, what: str) -> str:
    total = wrong.count()
    more = f" ({total} frames)" if total > 1 else ""
    return f"host: {gpa_text(first + wrong.index(1))} {what}{more}"
