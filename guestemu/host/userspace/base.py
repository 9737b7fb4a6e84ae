# SPDX-License-Identifier: GPL-2.0-or-later
"""The `UserSpace` interface: the VMM's side of KVM_RUN.

KVM calls it at an exit with the shared `KvmRun` page and the exited vCPU; what it leaves in the
page when it returns is what the next KVM_RUN completes the exit with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from guestemu.abi.errors import GuestemuError
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.run import KvmRun


class VmStopped(GuestemuError):
    """User space gave up on the VM at an exit (an error return of its exit handler)."""


class UserSpace(ABC):
    """Answers the exits of one VM."""

    __slots__ = ()

    touches_vcpu: ClassVar[bool] = True
    """Whether a handler may change registers or the mode of the vCPU. A handler that never does
    says False, and KVM then need not look at the vCPU again when it completes the exit."""

    @abstractmethod
    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """KVM_EXIT_HYPERCALL: the request is in `run.hypercall`; the answer goes to its `ret`."""

    @abstractmethod
    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """KVM_EXIT_X86_RDMSR: fills `run.msr.data`, or sets `run.msr.error` for #GP."""

    @abstractmethod
    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """KVM_EXIT_X86_WRMSR: takes `run.msr.data`, or sets `run.msr.error` for #GP."""

    def restore(self) -> bool:
        """Back to the state of a new one; False where only making a new one does that.

        Orders in its `Injection` are the caller's to withdraw.
        """
        return False

    def interrupted(self, run: KvmRun, vcpu: VcpuAccess, rip: int, rax: int) -> None:
        """KVM_RUN returned -EINTR because `run.immediate_exit` was set at the exit before.

        The exit was completed: `rip` and `rax` are what KVM_GET_REGS shows. Here: asks for no
        further interruption.
        """
        run.immediate_exit = False

    @property
    def state(self) -> int:
        """A number below 8 for coverage feedback: the path the last exit took in user space."""
        return 0
