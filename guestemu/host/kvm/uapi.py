# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of include/uapi/linux/kvm.h that the models need: bits of capabilities and exits.

Source: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h (Linux 7.1); facts section 0.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE

KVM_EXIT_NONE: Final = 0
KVM_EXIT_HYPERCALL: Final = 3
KVM_EXIT_X86_RDMSR: Final = 29
KVM_EXIT_X86_WRMSR: Final = 30
KVM_EXIT_MEMORY_FAULT: Final = 39

KVM_EXIT_HYPERCALL_VALID_MASK: Final = 1 << KVM_HC_MAP_GPA_RANGE
KVM_EXIT_HYPERCALL_LONG_MODE: Final = 1 << 0

KVM_MSR_EXIT_REASON_INVAL: Final = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN: Final = 1 << 1
KVM_MSR_EXIT_REASON_FILTER: Final = 1 << 2
KVM_MSR_EXIT_REASON_VALID_MASK: Final = 7

KVM_MSR_FILTER_READ: Final = 1 << 0
KVM_MSR_FILTER_WRITE: Final = 1 << 1
KVM_MSR_FILTER_MAX_RANGES: Final = 16
KVM_MSR_FILTER_MAX_BITMAP_SIZE: Final = 0x600

KVM_X86_QUIRK_FIX_HYPERCALL_INSN: Final = 1 << 5
