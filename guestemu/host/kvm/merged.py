# SPDX-License-Identifier: GPL-2.0-or-later
"""The merged generation: KVM since Linux 5.14, KVM_HC_MAP_GPA_RANGE as an exit to user space.

Source: kvm_emulate_hypercall(), complete_hypercall_exit() (arch/x86/kvm/x86.c, Linux 5.15 to 7.2),
K3-a to K3-i; every rule here was recorded from a real kernel. What KVM does not check (K3-d), the
model does not check: attributes, address width, memory slots, an upper limit of the page count.
"""

from __future__ import annotations

import enum
from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.host.base import Hypercall, MapGpaRange
from guestemu.host.kvm.base_calls import RAX_EINVAL, RAX_ENOSYS, RAX_EPERM, answer_base_call
from guestemu.host.kvm.msr_access import MsrAccess
from guestemu.host.kvm.run import KvmRun
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.kvm.uapi import (
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_HYPERCALL_LONG_MODE,
)
from guestemu.host.kvm.vmcall import fix_instruction
from guestemu.host.userspace.base import UserSpace

INSTRUCTION_LENGTH: Final = 3


class ExitPath(enum.IntEnum):
    """Which way the last exit went, for coverage feedback: 0 to 15, four bits of
    `MergedHost.state`. `campaign/fastpath/host.c` has the same numbers."""

    NONE = 0
    NOT_CPL0 = 1
    KVM_ANSWERED = 2
    NOT_ENABLED = 3
    UNALIGNED = 4
    NO_PAGES = 5
    WRAPS = 6
    LOST_EXIT = 7
    USER_SPACE = 8
    USER_SPACE_32BIT = 9
    INTERRUPTED = 10
    VMCALL_FAULT = 11
    MSR_READ = 12
    MSR_WRITE = 13
    MSR_FAULT = 14


# Plain names: an enum member costs an attribute lookup for each exit.
_NOT_CPL0: Final = ExitPath.NOT_CPL0
_KVM_ANSWERED: Final = ExitPath.KVM_ANSWERED
_NOT_ENABLED: Final = ExitPath.NOT_ENABLED
_UNALIGNED: Final = ExitPath.UNALIGNED
_NO_PAGES: Final = ExitPath.NO_PAGES
_WRAPS: Final = ExitPath.WRAPS
_LOST_EXIT: Final = ExitPath.LOST_EXIT
_USER_SPACE: Final = ExitPath.USER_SPACE
_USER_SPACE_32BIT: Final = ExitPath.USER_SPACE_32BIT


class MergedKvm:
    """KVM of one VM with one vCPU; `settings` is changed by the set-up ioctls before it runs.

    `run` is the page shared with `user_space`; `path`, an `ExitPath` value, is for coverage.
    """

    __slots__ = ("_touches_vcpu", "_user_exit", "msrs", "path", "run", "settings", "user_space")

    def __init__(self, settings: VmSettings, user_space: UserSpace) -> None:
        self.settings = settings
        self.user_space = user_space
        self.run = KvmRun()
        self.path = ExitPath.NONE
        self.msrs = MsrAccess(settings, self.run, user_space)
        self._user_exit = user_space.hypercall_exit
        self._touches_vcpu = user_space.touches_vcpu

    def restore(self) -> None:
        """As after the set-up ioctls, without any exit; the settings and user space stay."""
        self.path = ExitPath.NONE
        self.run.restore()
        self.msrs.restore()

    def hypercall(self, call: Hypercall) -> int:
        """Emulates VMMCALL or VMCALL; returns the 64-bit value of RAX (K3-c, in this order).

        Outside 64-bit code number, arguments and result are 32 bits wide. Raises `GuestFault`
        where a VMCALL cannot be turned into a VMMCALL.
        """
        if call.is_vmcall:
            self.path = ExitPath.VMCALL_FAULT
            fix_instruction(call, self.settings.disabled_quirks)
        is_64bit = call.is_64bit
        nr = call.nr if is_64bit else call.nr & U32_MASK
        if call.cpl:
            self.path = _NOT_CPL0
            result = RAX_EPERM
        elif nr == KVM_HC_MAP_GPA_RANGE:
            return self._map_gpa_range(call, is_64bit)
        else:
            self.path = _KVM_ANSWERED
            arguments = call.a0, call.a1, call.a3
            if not is_64bit:
                arguments = call.a0 & U32_MASK, call.a1 & U32_MASK, call.a3 & U32_MASK
            result = answer_base_call(self.settings, nr, arguments)
        return result if is_64bit else result & U32_MASK

    def _map_gpa_range(self, call: Hypercall, is_64bit: bool) -> int:
        gpa, pages, attributes = call.a0, call.a1, call.a2
        if not is_64bit:
            gpa &= U32_MASK
            pages &= U32_MASK
            attributes &= U32_MASK
        gfn = gpa >> PAGE_SHIFT
        if not self.settings.hypercall_exits:
            self.path = _NOT_ENABLED
            return RAX_ENOSYS if is_64bit else RAX_ENOSYS & U32_MASK
        if gpa & PAGE_MASK or not pages or gfn + pages > U64_MASK:
            self.path = _UNALIGNED if gpa & PAGE_MASK else _WRAPS if pages else _NO_PAGES
            return RAX_EINVAL if is_64bit else RAX_EINVAL & U32_MASK
        kernel = self.settings.kernel
        run = self.run
        request = run.hypercall
        request.nr = KVM_HC_MAP_GPA_RANGE
        args = request.args
        args[0] = gpa
        args[1] = pages
        args[2] = attributes
        if kernel.zeroes_ret:
            request.ret = 0
        request.longmode = KVM_EXIT_HYPERCALL_LONG_MODE if is_64bit else 0
        if kernel.writes_flags_word:
            request.pad = 0
        run.exit_reason = KVM_EXIT_HYPERCALL
        if not is_64bit:
            if kernel.compares_untruncated_nr and call.nr != KVM_HC_MAP_GPA_RANGE:
                self.path = _LOST_EXIT
                return 0
            self.path = _USER_SPACE_32BIT
        else:
            self.path = _USER_SPACE
        vcpu = call.vcpu
        self._user_exit(run, vcpu)
        if self._touches_vcpu:
            is_64bit = vcpu.is_64bit
        result = request.ret if is_64bit else request.ret & U32_MASK
        if run.immediate_exit:
            self._interrupt(call, result)
        return result

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """An exit that KVM makes of a page-state change or a TD's MapGPA; returns `hypercall.ret`.

        KVM has checked the range; it sets `ret` to 0 on every kernel that can do this (T26).
        """
        run = self.run
        request = run.hypercall
        request.nr = KVM_HC_MAP_GPA_RANGE
        args = request.args
        args[0] = call.gpa
        args[1] = call.pages
        args[2] = call.attributes
        request.ret = 0
        request.longmode = KVM_EXIT_HYPERCALL_LONG_MODE
        request.pad = 0
        run.exit_reason = KVM_EXIT_HYPERCALL
        self.path = _USER_SPACE
        self._user_exit(run, call.vcpu)
        return request.ret

    def _interrupt(self, call: Hypercall, result: int) -> None:
        """Re-entry with immediate_exit: the hypercall completes, KVM_RUN returns -EINTR."""
        self.path = ExitPath.INTERRUPTED
        rip = (call.vcpu.read_register("rip") + INSTRUCTION_LENGTH) & U64_MASK
        self.user_space.interrupted(self.run, call.vcpu, rip, result)
