# SPDX-License-Identifier: GPL-2.0-or-later
"""A `Host` made of merged KVM and a user space that keeps the VM's memory in guest_memfd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

from guestemu.host.kvm.guest_memory import GuestMemory, MemoryFaultExit
from guestemu.host.kvm.host import MergedHost
from guestemu.host.kvm.memory_operations import memory_operations
from guestemu.program.ops import OpKind


class MemoryUserSpace(Protocol):
    """A user space that calls KVM for the VM's memory."""

    memory: GuestMemory

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """KVM_EXIT_MEMORY_FAULT: whether the vCPU runs again."""


class MemoryHost(MergedHost):
    """Merged KVM of the newest kernel, as guest_memfd needs, under the user space `user`."""

    default_kernel: ClassVar[str] = "7.2"
    contract_state: ClassVar[bool] = True

    user: MemoryUserSpace

    @property
    def guest_memory(self) -> GuestMemory:
        """Slots, attributes and backings of the VM, as the calls of user space made them."""
        return self.user.memory

    @property
    def has_failing_kernel(self) -> bool:
        """Whether an ordered failure of a call has happened."""
        return self.user.memory.has_failed

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """KVM_EXIT_MEMORY_FAULT, to user space."""
        return self.user.memory_fault(fault)

    def operations(self) -> Mapping[OpKind, Callable[..., int]]:
        """Failing calls, and accesses that exit."""
        return memory_operations(self)
