# SPDX-License-Identifier: GPL-2.0-or-later
"""The page that KVM and user space share: `struct kvm_run`, in the parts that matter here.

Fields that a kernel does not write keep what was there before; that is how a guest comes to see
stale bytes as the result of a hypercall (K3-g). The two exit records are kept apart although the
kernel overlays them in one union: the words that an MSR exit overlays (nr, args[0], args[1]) are
rewritten by every hypercall exit, so the overlay cannot be observed through them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.host.kvm.uapi import KVM_EXIT_NONE

HYPERCALL_ARGS: Final = 6
_NO_ARGS: Final = (0,) * HYPERCALL_ARGS


class RunHypercall(msgspec.Struct, gc=False):
    """`run->hypercall`: { u64 nr; u64 args[6]; u64 ret; u32 longmode; u32 pad }.

    Since Linux 6.4 the last two words are one u64 `flags` (K3-h); `longmode` is then its low half
    and `pad` its high half.
    """

    nr: int = 0
    args: list[int] = msgspec.field(default_factory=lambda: [0] * HYPERCALL_ARGS)
    ret: int = 0
    longmode: int = 0
    pad: int = 0

    def clear(self) -> None:
        """All words 0, as in a new page."""
        self.nr = self.ret = self.longmode = self.pad = 0
        self.args[:] = _NO_ARGS

    def fill(self, byte: int) -> None:
        """Overwrites the record with `byte`, as a test harness does to see unwritten words."""
        word = int.from_bytes(bytes([byte]) * 8, "little")
        self.nr = self.ret = word
        self.args[:] = [word] * HYPERCALL_ARGS
        self.longmode = self.pad = word & 0xFFFFFFFF


class MsrExit(msgspec.Struct, gc=False):
    """`run->msr`: { u8 error; u32 reason; u32 index; u64 data } (K5-b)."""

    error: int = 0
    reason: int = 0
    index: int = 0
    data: int = 0


class KvmRun(msgspec.Struct):
    """`struct kvm_run`: why KVM_RUN returned and the record of that exit.

    `immediate_exit` set by user space makes the next KVM_RUN complete the pending exit and return
    -EINTR without entering the guest.
    """

    exit_reason: int = KVM_EXIT_NONE
    immediate_exit: bool = False
    hypercall: RunHypercall = msgspec.field(default_factory=RunHypercall)
    msr: MsrExit = msgspec.field(default_factory=MsrExit)

    def restore(self) -> None:
        """As a new page of a new vCPU; cheap where no exit was taken."""
        if self.exit_reason != KVM_EXIT_NONE:
            self.exit_reason = KVM_EXIT_NONE
            self.hypercall.clear()
            if self.msr.reason:
                self.msr = MsrExit()
        self.immediate_exit = False
