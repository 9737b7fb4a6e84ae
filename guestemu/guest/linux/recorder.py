# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers a kernel's exits while it boots, before any host is there, and notes them.

A guest boots once and then runs under many hosts. So the boot is answered as a host that does
everything right would, and what it said is kept: `Testbed` tells it to each host.
"""

from __future__ import annotations

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST, MSR_KVM_CUSTOM_LAST
from guestemu.guest.base import BootExit
from guestemu.machine.exits import GuestFault, Hypercall, VcpuAccess


class BootRecorder:
    """An `ExitHandler` that answers hypercalls with `answer` (a 64-bit RAX) and accepts every MSR
    of KVM's range; others fault.

    `exits` are the hypercalls and MSR writes so far, in order.
    """

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer & U64_MASK
        self.exits: list[BootExit] = []

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        self.exits.append(("hypercall", call.nr, (call.a0, call.a1, call.a2, call.a3)))
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
