# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor that answers MapGPA by a script, and does less or more than it says."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.tdx import VMCALL_RETRY, VMCALL_SUCCESS, MapGpaAnswer
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.host.kvm.tdx_map_gpa import KVM_7_2, tdx_map_gpa
from guestemu.machine.exits import MapGpaRange, RunFailed, VcpuAccess
from guestemu.machine.sept import SecureEpt
from guestemu.machine.view_bit import ViewBit


class At(enum.Enum):
    """What R11 holds after a retry, where it is not an offset in the whole range."""

    SAME = "start of the call"
    ZERO = "0"
    INVERTED = "start with the bit inverted"


class MapGpaReply(msgspec.Struct, frozen=True):
    """One answer to MapGPA: R10, R11 (an offset in bytes from the start of the whole range, or an
    `At`), and the pages that the host converts from the start of the call on (None: what the answer
    says)."""

    status: int
    at: int | At = At.SAME
    pages: int | None = None


class ScriptedKvm(BootRecorder):
    """Gives `answers` in turn, then answers as KVM under a user space that agrees.

    `event_every_chunk`: an event is pending after every chunk of 2 MiB. `calls` are the MapGPAs as
    (address, bytes)."""

    def __init__(
        self, answers: Sequence[MapGpaReply] = (), event_every_chunk: bool = False
    ) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []
        self._left = list(answers)
        self._has_event = event_every_chunk

    def tdx_map_gpa(
        self, gpa: int, size: int, bit: ViewBit, vcpu: VcpuAccess, sept: SecureEpt
    ) -> MapGpaAnswer | RunFailed:
        """See `MapGpaHandler`."""
        self.calls.append((gpa, size))
        convert = sept.make_private if bit.is_private(gpa) else sept.make_shared
        if not self._left:

            def ask(call: MapGpaRange) -> int:
                convert(call.gpa >> PAGE_SHIFT, call.pages)
                return 0

            return tdx_map_gpa(
                KVM_7_2, gpa, size, bit, ask, vcpu=vcpu, has_event=lambda: self._has_event
            )
        answer = self._left.pop(0)
        first = self.calls[0][0]
        next_gpa = (
            {
                At.SAME: gpa,
                At.ZERO: 0,
                At.INVERTED: gpa ^ bit.mask,
            }.get(answer.at, 0)
            if isinstance(answer.at, At)
            else first + answer.at
        )
        pages = answer.pages
        if pages is None:
            done = {VMCALL_SUCCESS: size, VMCALL_RETRY: max(0, next_gpa - gpa)}
            pages = done.get(answer.status, 0) >> PAGE_SHIFT
        convert((gpa & ~bit.mask) >> PAGE_SHIFT, pages)
        return MapGpaAnswer(answer.status & U64_MASK, next_gpa & U64_MASK)
