# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of a program that a host with guest_memfd carries out.

`fail_call` orders the failure of a call that the VMM makes into its kernel; `guest_access` is the
guest's load or store of a page, which exits where the kind of the access is not the page's
attribute (GM6); `pin_page` gives a page of a guest_memfd that converts in place a reference (GM10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EINVAL, ENOTTY, MAX_ERRNO
from guestemu.host.kvm.guest_memory import HasGuestMemory, MemoryFaultExit
from guestemu.host.kvm.in_place_memory import InPlaceMemory
from guestemu.program.ops import OpKind


class HandlesMemoryFaults(HasGuestMemory, Protocol):
    """A host with guest_memfd whose user space gets KVM_EXIT_MEMORY_FAULT."""

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """Whether the vCPU runs again."""

    def unplug(self, gfn: int, pages: int) -> int:
        """Unplugs the plugged slot that a range meets."""


def memory_operations(host: HandlesMemoryFaults) -> Mapping[OpKind, Callable[..., int]]:
    """What `host` does for each of the operations."""

    def fail_call(after: int, errno: int) -> int:
        if not 0 < errno <= MAX_ERRNO:
            return -EINVAL
        host.guest_memory.order_failure(after, errno)
        return 0

    def guest_access(gfn: int, private: int) -> int:
        if gfn > U64_MASK >> PAGE_SHIFT:
            return -EINVAL
        fault = host.guest_memory.access(gfn << PAGE_SHIFT, bool(private))
        return 0 if fault is None else int(host.memory_fault(fault))

    def pin_page(gfn: int, conversions: int) -> int:
        memory = host.guest_memory
        if not isinstance(memory, InPlaceMemory):
            return -ENOTTY
        memory.pin(gfn, conversions)
        return 0

    return {
        OpKind.FAIL_CALL: fail_call,
        OpKind.GUEST_ACCESS: guest_access,
        OpKind.PIN_PAGE: pin_page,
        OpKind.UNPLUG_SLOT: host.unplug,
    }
