# SPDX-License-Identifier: GPL-2.0-or-later
"""Model-specific registers that this field talks about.

Source: arch/x86/include/asm/msr-index.h and arch/x86/include/uapi/asm/kvm_para.h (Linux 7.1).
"""

from __future__ import annotations

from typing import Final

MSR_KVM_CUSTOM_FIRST: Final = 0x4B564D00
MSR_KVM_CUSTOM_LAST: Final = 0x4B564DFF
MSR_KVM_MIGRATION_CONTROL: Final = 0x4B564D08
MSR_KVM_SEV_LIVE_MIG_EN_2020: Final = 0x4B564D06
"""The opt-in MSR as posted in March to May 2020 (v5 to v8); upstream gave the number to
MSR_KVM_ASYNC_PF_INT, so v9 moved to 0x4b564d08."""

KVM_MIGRATION_READY: Final = 1 << 0

MSR_EFER: Final = 0xC0000080
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NX: Final = 1 << 11

MSR_AMD64_SEV_ES_GHCB: Final = 0xC0010130
MSR_AMD64_SEV: Final = 0xC0010131
SEV_STATUS_SEV: Final = 1 << 0
SEV_STATUS_SEV_ES: Final = 1 << 1
SEV_STATUS_SEV_SNP: Final = 1 << 2
