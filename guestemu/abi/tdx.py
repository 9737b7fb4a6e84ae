# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of TDCALL and of the guest-hypervisor interface of a TD.

Source: Intel TDX Module ABI and GHCI specifications; arch/x86/include/asm/shared/tdx.h,
arch/x86/coco/tdx/tdx.c, arch/x86/kvm/vmx/tdx.c (Linux 6.12 to 7.3); facts T4 to T7, T14, T26.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

TDCALL: Final = b"\x66\x0f\x01\xcc"

CPUID_TDX: Final = 0x21
CPUID_TDX_SIGNATURE: Final = b"IntelTDX    "
"""Twelve bytes: EBX, EDX, ECX."""


class TdcallLeaf(enum.IntEnum):
    """TDCALL leaves that a Linux guest uses, by number in RAX."""

    VP_VMCALL = 0
    VP_INFO = 1
    RTMR_EXTEND = 2
    VP_VEINFO_GET = 3
    MR_REPORT = 4
    MEM_PAGE_ACCEPT = 6
    VM_RD = 7
    VM_WR = 8


class Vmcall(enum.IntEnum):
    """Sub-functions of TDG.VP.VMCALL in R11 (with R10 = 0): GHCI's own and VMX exit reasons."""

    CPUID = 10
    HLT = 12
    IO = 30
    RDMSR = 31
    WRMSR = 32
    MMIO = 48
    GET_TD_VMCALL_INFO = 0x10000
    MAP_GPA = 0x10001
    GET_QUOTE = 0x10002
    REPORT_FATAL_ERROR = 0x10003
    SETUP_EVENT_NOTIFY = 0x10004


class MapGpaAnswer(NamedTuple):
    """R10 and R11 after TDG.VP.VMCALL<MapGPA>; R11 counts after a retry only."""

    status: int
    next_gpa: int = 0


MAP_GPA_CHUNK: Final = 2 << 20
"""TDX_MAP_GPA_MAX_LEN of KVM, in bytes."""

VMCALL_SUCCESS: Final = 0
VMCALL_RETRY: Final = 1
VMCALL_INVALID_OPERAND: Final = 1 << 63
VMCALL_GPA_INUSE: Final = 1 << 63 | 1
VMCALL_ALIGN_ERROR: Final = 1 << 63 | 2
VMCALL_SUBFUNC_UNSUPPORTED: Final = 1 << 63 | 3

SUCCESS: Final = 0
OPERAND_INVALID: Final = 0xC000_0100_0000_0000
OPERAND_BUSY: Final = 0x8000_0200_0000_0000
NO_VE_INFO: Final = 0xC000_0704_0000_0000
PAGE_ALREADY_ACCEPTED: Final = 0x0000_0B0A_0000_0000
PAGE_SIZE_MISMATCH: Final = 0xC000_0B0B_0000_0000
"""Completion codes of the module in RAX; the low 32 bits name an operand or a level."""

ATTR_SEPT_VE_DISABLE: Final = 1 << 28
"""TD attribute: a private access to a pending page exits to the host instead of raising #VE."""

FIELD_NOTIFY_ENABLES: Final = 0x9100_0000_0000_0010
FIELD_CONFIG_FLAGS: Final = 0x1110_0003_0000_0016
FIELD_TD_CTLS: Final = 0x1110_0003_0000_0017

LEVEL_4K, LEVEL_2M, LEVEL_1G = range(3)
"""Page sizes in the low bits of RCX of TDG.MEM.PAGE.ACCEPT."""

VECTOR_VE: Final = 20

EXIT_REASON_CPUID: Final = 10
EXIT_REASON_HLT: Final = 12
EXIT_REASON_IO: Final = 30
EXIT_REASON_EPT_VIOLATION: Final = 48
EXIT_REASON_VMCALL: Final = 18
EXIT_REASON_MSR_READ: Final = 31
EXIT_REASON_MSR_WRITE: Final = 32
