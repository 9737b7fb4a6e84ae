# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers a kernel's exits while it boots, before any host is there, and notes them.

A guest boots once and then runs under many hosts. So the boot is answered as a host that does
everything right would, and what it said is kept: `Testbed` tells it to each host.
"""

from __future__ import annotations

from collections.abc import Iterable

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST, MSR_KVM_CUSTOM_LAST
from guestemu.guest.base import BootExit
from guestemu.machine.exits import GuestFault, Hypercall, MapGpaRange, VcpuAccess


def joined(exits: Iterable[BootExit]) -> list[BootExit]:
    """`exits` with neighbouring ranges of one kind as one: an SNP boot converts .bss..decrypted
    page by page, in 512 exits."""
    result: list[BootExit] = []
    notification = ("hypercall", KVM_HC_MAP_GPA_RANGE)
    for exit_ in exits:
        if result and exit_[:2] == result[-1][:2] == notification:
            gpa, pages, *kind = result[-1][2]
            if exit_[2][0] == gpa + (pages << PAGE_SHIFT) and list(exit_[2][2:]) == kind:
                result[-1] = (*notification, (gpa, pages + exit_[2][1], *kind))
                continue
        result.append(exit_)
    return result


class BootRecorder:
    """An `ExitHandler` that answers hypercalls with `answer` (a 64-bit RAX) and accepts every MSR
    of KVM's range; others fault.

    `exits` are the hypercalls and MSR writes so far, in order; a page-state change is the hypercall
    that user space sees.
    """

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer & U64_MASK
        self.exits: list[BootExit] = []

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        self.exits.append(("hypercall", call.nr, (call.a0, call.a1, call.a2, call.a3)))
        return self.answer

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        arguments = (call.gpa, call.pages, call.attributes, 0)
        self.exits.append(("hypercall", KVM_HC_MAP_GPA_RANGE, arguments))
        return self.answer

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        self._check(index)
        return 0

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        self._check(index)
        self.exits.append(("wrmsr", index, (value,)))

    @staticmethod
    def _check(index: int) -> None:
        if not MSR_KVM_CUSTOM_FIRST <= index <= MSR_KVM_CUSTOM_LAST:
            raise GuestFault
