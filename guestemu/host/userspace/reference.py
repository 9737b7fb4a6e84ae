# SPDX-License-Identifier: GPL-2.0-or-later
"""A user space that does what the documentation of the merged ABI asks for, and nothing odd.

It keeps one bit for each frame of RAM, 1 = private, all private at the start (the documented
default), and MSR_KVM_MIGRATION_CONTROL as one VM-wide latch whose reserved bits are refused.

Source: Documentation/virt/kvm/x86/hypercalls.rst and msr.rst (Linux 7.1); K5-c, K5-e, K5-f.
"""

from __future__ import annotations

from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.run import KvmRun
from guestemu.host.marked_bits import MarkedBits
from guestemu.host.userspace.base import UserSpace
from guestemu.host.userspace.injection import Injection

_LARGE: Final = 1 << 17
"""Frames above which it pays to note where the record was written: 512 MiB."""


class ReferenceUserSpace(UserSpace):
    """The reference handler for a VM with `frames` 4 KiB frames of RAM from GPA 0 on.

    `private` is its record, indexed by gfn; parts of a range beyond RAM are accepted and not
    recorded. `migration_control` is the latch, 0 at the start (K5-c: guest with encrypted memory).
    """

    touches_vcpu: ClassVar[bool] = False

    __slots__ = ("_frames", "_state", "injection", "migration_control", "private")

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._state = 0
        kind = MarkedBits if frames > _LARGE else bitarray
        self.private: bitarray = kind(frames, endian="little")
        self.private.setall(True)
        self.migration_control = 0
        self.injection = Injection()

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Records a range by attribute bit 4 and answers 0; the size bits and all others are
        hints that change nothing."""
        request = run.hypercall
        if self.injection.answers:
            self._state = 1
            request.ret = self.injection.take_answer()
            return
        args = request.args
        first = args[0] >> PAGE_SHIFT
        end = first + args[1]
        self.private[first:end] = 1 if args[2] & MAP_GPA_RANGE_ENCRYPTED else 0
        frames = self._frames
        self._state = 2 if end <= frames else 3 if first < frames else 4
        request.ret = 0

    def restore(self) -> bool:
        """All frames private, the latch 0."""
        if self._state:
            self._state = 0
            private = self.private
            fill = private.refill if isinstance(private, MarkedBits) else private.setall
            fill(True)
        self.migration_control = 0
        return True

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Gives the latch back; any other MSR is an error."""
        access = run.msr
        if access.index != MSR_KVM_MIGRATION_CONTROL or self.injection.take_msr_error():
            access.error = 1
        else:
            access.data = self.migration_control

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Last writer wins, whichever vCPU it is (K5-e); a reserved bit is an error (K5-f)."""
        access = run.msr
        is_known = access.index == MSR_KVM_MIGRATION_CONTROL
        if not is_known or self.injection.take_msr_error() or access.data & ~KVM_MIGRATION_READY:
            access.error = 1
        else:
            self.migration_control = access.data

    @property
    def state(self) -> int:
        """1 ordered answer, 2 inside RAM, 3 clipped, 4 wholly beyond RAM."""
        return self._state
