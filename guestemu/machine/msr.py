# SPDX-License-Identifier: GPL-2.0-or-later
"""Which MSRs the emulated CPU keeps itself, and the few that the machine answers.

Unicorn has no hook for RDMSR and WRMSR: an unknown MSR reads 0 and swallows writes. So each site
is hooked by address and the access is decided here: kept by the CPU, answered by the machine
(SEV_STATUS), or an exit for the host.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.msrs import MSR_AMD64_SEV, MSR_EFER

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
    """MSRs that the machine answers without asking the host; writes to them fault."""

    def __init__(self, sev_status: int) -> None:
        self.values: dict[int, int] = {MSR_AMD64_SEV: sev_status}
