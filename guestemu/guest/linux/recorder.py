# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers a kernel's exits while it boots, before any host is there, and notes them.

A guest boots once and then runs under many hosts. So the boot is answered as a host that does
everything right would, and what it said is kept: `Testbed` tells it to each host.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST, MSR_KVM_CUSTOM_LAST
from guestemu.events.exits import HypercallExit, MapGpaRangeExit, WrmsrExit
from guestemu.guest.base import BootExit
from guestemu.machine.exits import GuestFault, Hypercall, MapGpaRange, VcpuAccess


def joined(exits: Iterable[BootExit]) -> list[BootExit]:
    """`exits` with neighbouring ranges of one kind as one: an SNP boot converts .bss..decrypted
    page by page, in 512 exits."""
    result: list[BootExit] = []
    for exit_ in exits:
        last = result[-1] if result else None
        if isinstance(last, HypercallExit) and isinstance(exit_, HypercallExit):
            gpa, pages, *kind = last.args
            start, more, *other = exit_.args
            is_range = last.nr == exit_.nr == KVM_HC_MAP_GPA_RANGE
            if is_range and start == gpa + (pages << PAGE_SHIFT) and other == kind:
                args = (gpa, pages + more, *kind)
                result[-1] = msgspec.structs.replace(last, args=args)
                continue
        result.append(exit_)
    return result


class BootRecorder:
    """An `ExitHandler` that answers hypercalls with `answer` (a 64-bit RAX) and accepts every MSR
    of KVM's range; others fault.

    `exits` are the hypercalls, page-state changes and MSR writes so far, in order.
    """

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer & U64_MASK
        self.exits: list[BootExit] = []

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        args = (call.a0, call.a1, call.a2, call.a3)
        self.exits.append(HypercallExit(call.nr, args, self.answer, 0, call.cpl, call.is_64bit))
        return self.answer

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        args = (call.gpa, call.pages, call.attributes, 0)
        self.exits.append(
            MapGpaRangeExit(KVM_HC_MAP_GPA_RANGE, args, self.answer, 0, origin=call.origin)
        )
        return self.answer

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        self._check(index)
        return 0

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        self._check(index)
        self.exits.append(WrmsrExit(index, (value,), value, 0))

    @staticmethod
    def _check(index: int) -> None:
        if not MSR_KVM_CUSTOM_FIRST <= index <= MSR_KVM_CUSTOM_LAST:
            raise GuestFault
