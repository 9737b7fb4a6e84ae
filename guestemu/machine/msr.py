# SPDX-License-Identifier: GPL-2.0-or-later
"""Which MSRs the emulated CPU keeps itself, and the few that the machine answers.

Unicorn has no hook for RDMSR and WRMSR: an unknown MSR reads 0 and swallows writes. So each site
is hooked by address and the access is decided here: kept by the CPU, answered by the machine
(SEV_STATUS), or an exit for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi.msrs import MSR_AMD64_SEV, MSR_EFER
from guestemu.machine.exits import GuestFault

CPU_MSRS: Final = frozenset(
    {
        MSR_EFER,
        0xC0000081,  # STAR
        0xC0000082,  # LSTAR
        0xC0000083,  # CSTAR
        0xC0000084,  # SYSCALL_MASK
        0xC0000100,  # FS_BASE
        0xC0000101,  # GS_BASE
        0xC0000102,  # KERNEL_GS_BASE
        0xC0000103,  # TSC_AUX
        0x174,  # SYSENTER_CS
        0x175,  # SYSENTER_ESP
        0x176,  # SYSENTER_EIP
        0x277,  # PAT
    }
)
"""MSRs that the emulated CPU implements; accesses go to it."""


class MsrFile:
    """MSRs that the machine answers without asking the host.

    `values` are read-only (a write faults); `platform` can be written, and `on_write` is told of
    the new value (a paravirtual clock, say). Each vCPU has its own values of the platform MSRs in
    `own`, in `platform` those of the vCPU that executes.
    """

    def __init__(self, sev_status: int) -> None:
        self.values: dict[int, int] = {MSR_AMD64_SEV: sev_status}
        self.platform: dict[int, int] = {}
        self.on_write: Callable[[int, int], None] | None = None
        self.own: set[int] = set()
        self.others: dict[int, dict[int, int]] = {}
        """By vCPU the values of `own`, of those that do not execute and did before."""

    def change(self, old: int, new: int) -> None:
        """VCPU `new` executes from now on in place of `old`; its own MSRs are 0 at first."""
        if self.own:
            self.others[old] = {index: self.platform[index] for index in self.own}
            self.platform.update(self.others.pop(new, dict.fromkeys(self.own, 0)))

    def holds(self, index: int) -> bool:
        """Whether accesses to MSR `index` end here."""
        return index in self.values or index in self.platform

    def read(self, index: int) -> int:
        """The value of an MSR that `holds` said yes to."""
        value = self.values.get(index)
        return self.platform[index] if value is None else value

    def write(self, index: int, value: int) -> None:
        """Sets a platform MSR; `GuestFault` for a read-only one."""
        if index not in self.platform:
            raise GuestFault
        self.platform[index] = value
        if self.on_write is not None:
            self.on_write(index, value)
