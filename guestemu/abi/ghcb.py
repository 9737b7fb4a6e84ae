# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the Guest-Hypervisor Communication Block and of its MSR protocol.

Source: AMD "SEV-ES Guest-Hypervisor Communication Block Standardization" (56421), version 2, and
arch/x86/include/asm/sev-common.h, svm.h, uapi/asm/svm.h (Linux 6.12).
"""

from __future__ import annotations

import enum
from typing import Final

GHCB_VERSION_MIN: Final = 1
GHCB_VERSION_MAX: Final = 2

# The MSR protocol: the low 12 bits say what the rest means -------------------------------------

MSR_INFO_MASK: Final = 0xFFF
MSR_SEV_INFO_RESP: Final = 0x001
MSR_SEV_INFO_REQ: Final = 0x002
MSR_CPUID_REQ: Final = 0x004
MSR_CPUID_RESP: Final = 0x005
MSR_PREF_GPA_REQ: Final = 0x010
MSR_PREF_GPA_RESP: Final = 0x011
MSR_REG_GPA_REQ: Final = 0x012
MSR_REG_GPA_RESP: Final = 0x013
MSR_PSC_REQ: Final = 0x014
MSR_PSC_RESP: Final = 0x015
MSR_HV_FT_REQ: Final = 0x080
MSR_HV_FT_RESP: Final = 0x081
MSR_TERM_REQ: Final = 0x100

MSR_PREF_GPA_NONE: Final = 0xF_FFFF_FFFF_FFFF
MSR_PSC_ERROR: Final = 0x8000_0000
"""KVM's error word is bit 63 with the response code (N1)."""

HV_FT_SNP: Final = 1 << 0
HV_FT_SNP_AP_CREATION: Final = 1 << 1

# Exit codes in SW_EXITCODE; the low ones are the VMCB's own --------------------------------------

EXIT_CPUID: Final = 0x72
EXIT_MSR: Final = 0x7C
EXIT_VMMCALL: Final = 0x81
EXIT_PAGE_NOT_VALIDATED: Final = 0x404
EXIT_NPF: Final = 0x400
EXIT_MMIO_READ: Final = 0x8000_0001
EXIT_MMIO_WRITE: Final = 0x8000_0002
EXIT_NMI_COMPLETE: Final = 0x8000_0003
EXIT_AP_HLT_LOOP: Final = 0x8000_0004
EXIT_AP_JUMP_TABLE: Final = 0x8000_0005
EXIT_PSC: Final = 0x8000_0010
EXIT_AP_CREATION: Final = 0x8000_0013
EXIT_HV_FEATURES: Final = 0x8000_FFFD
EXIT_TERM_REQUEST: Final = 0x8000_FFFE

# Answers in SW_EXITINFO1; the reasons are in SW_EXITINFO2 ----------------------------------------

RESP_NO_ACTION: Final = 0
RESP_ISSUE_EXCEPTION: Final = 1
RESP_MALFORMED_INPUT: Final = 2

AP_JUMP_TABLE_SET: Final = 0
AP_JUMP_TABLE_GET: Final = 1

AP_CREATE_ON_INIT: Final = 0
AP_CREATE: Final = 1
AP_DESTROY: Final = 2
"""What SVM_VMGEXIT_AP_CREATION asks for: SW_EXITINFO1 [31:0]; [63:32] is the APIC id."""

SEV_FEATURE_SNP_ACTIVE: Final = 1 << 0
SEV_FEATURE_INJECTION_MODES: Final = 1 << 3 | 1 << 4
"""Bits of SEV_FEATURES in a VMSA: restricted and alternate injection."""

EVTINJ_TYPE_EXCEPTION: Final = 3 << 8
EVTINJ_VALID_ERROR: Final = 1 << 11
EVTINJ_VALID: Final = 1 << 31


class GhcbError(enum.IntEnum):
    """Why the hypervisor found a request malformed."""

    NOT_REGISTERED = 1
    INVALID_USAGE = 2
    INVALID_SCRATCH_AREA = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


# Page-state changes ----------------------------------------------------------------------------

PSC_OP_PRIVATE: Final = 1
PSC_OP_SHARED: Final = 2
GHCB_SHARED_BUFFER: Final = 0x800
PSC_MAX_COUNT: Final = 253
"""Entries that the GHCB's shared buffer has room for."""

PSC_ERROR_GENERIC: Final = 0x100 << 32
PSC_ERROR_INVALID_HDR: Final = 1 << 32 | 1
PSC_ERROR_INVALID_ENTRY: Final = 1 << 32 | 2

# PVALIDATE and RMPADJUST (AMD64 APM volume 3) ----------------------------------------------------

RMP_OK: Final = 0
RMP_FAIL_INPUT: Final = 1
RMP_FAIL_PERMISSION: Final = 2
RMP_FAIL_IN_USE: Final = 3
RMP_FAIL_OVERLAP: Final = 4
RMP_FAIL_SIZE_MISMATCH: Final = 6

VMGEXIT: Final = b"\xf3\x0f\x01\xd9"
PVALIDATE: Final = b"\xf2\x0f\x01\xff"
RMPADJUST: Final = b"\xf3\x0f\x01\xfe"
"""The instructions' bytes."""

RMPADJUST_VMSA: Final = 1 << 16
"""The bit of RDX that makes a page a VMSA."""

# Termination requests ----------------------------------------------------------------------------

TERM_SET_GENERAL: Final = 0
TERM_SET_LINUX: Final = 1
TERM_REASONS: Final = {
    (TERM_SET_GENERAL, 0): "general request",
    (TERM_SET_GENERAL, 1): "the GHCB protocol is not supported",
    (TERM_SET_GENERAL, 2): "SNP is not supported by the hypervisor",
    (TERM_SET_LINUX, 0): "GHCB registration failed",
    (TERM_SET_LINUX, 1): "a page-state change failed",
    (TERM_SET_LINUX, 2): "PVALIDATE failed",
    (TERM_SET_LINUX, 3): "not running at VMPL 0",
    (TERM_SET_LINUX, 4): "a CPUID entry is invalid",
    (TERM_SET_LINUX, 5): "CPUID from the hypervisor is invalid",
}
"""(reason set, reason) of a termination request, in words."""
