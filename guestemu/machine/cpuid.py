# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID as a SEV guest of KVM reads it (facts A33, A48; leaf numbers in abi/cpuid.py)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from guestemu.abi.cpuid import (
    CPUID_ADDRESS_SIZES,
    CPUID_EXTENDED_MAX,
    CPUID_HYPERVISOR,
    CPUID_KVM_FEATURES,
    CPUID_MEMORY_ENCRYPTION,
    KVM_FEATURE_CLOCKSOURCE2,
    KVM_FEATURE_HC_MAP_GPA_RANGE,
    KVM_FEATURE_MIGRATION_CONTROL,
    KVM_SIGNATURE,
    MEMORY_ENCRYPTION_COHERENT,
    MEMORY_ENCRYPTION_SEV,
    MEMORY_ENCRYPTION_SEV_ES,
    MEMORY_ENCRYPTION_SEV_SNP,
)
from guestemu.abi.msrs import SEV_STATUS_SEV, SEV_STATUS_SEV_ES, SEV_STATUS_SEV_SNP


class CpuidLeaf(NamedTuple):
    """EAX, EBX, ECX, EDX of one leaf."""

    eax: int
    ebx: int
    ecx: int
    edx: int


def sev_guest_leaves(
    sev_status: int,
    cbit: int,
    coherent: bool = True,
    kvm_features: int = (
        1 << KVM_FEATURE_CLOCKSOURCE2
        | 1 << KVM_FEATURE_HC_MAP_GPA_RANGE
        | 1 << KVM_FEATURE_MIGRATION_CONTROL
    ),
) -> dict[int, CpuidLeaf]:
    """The leaves that identify KVM and memory encryption.

    `sev_status` is MSR 0xC0010131; `cbit` the bit number (EBX[5:0], one bit of address reduction in
    EBX[11:6]); `kvm_features` EAX of 0x40000001, which user space chooses (KVM never sets bits 16
    and 17 itself, A48).
    """
    encryption = 0
    if sev_status & SEV_STATUS_SEV:
        encryption |= MEMORY_ENCRYPTION_SEV
    if sev_status & SEV_STATUS_SEV_ES:
        encryption |= MEMORY_ENCRYPTION_SEV_ES
    if sev_status & SEV_STATUS_SEV_SNP:
        encryption |= MEMORY_ENCRYPTION_SEV_SNP
    if encryption and coherent:
        encryption |= MEMORY_ENCRYPTION_COHERENT
    vendor = struct.unpack("<3I", KVM_SIGNATURE)
    physical_bits = max(40, cbit + 1)
    return {
        CPUID_HYPERVISOR: CpuidLeaf(CPUID_KVM_FEATURES, *vendor),
        CPUID_KVM_FEATURES: CpuidLeaf(kvm_features, 0, 0, 0),
        CPUID_EXTENDED_MAX: CpuidLeaf(CPUID_MEMORY_ENCRYPTION, 0x68747541, 0x444D4163, 0x69746E65),
        CPUID_ADDRESS_SIZES: CpuidLeaf(physical_bits | 48 << 8, 0, 0, 0),
        CPUID_MEMORY_ENCRYPTION: CpuidLeaf(encryption, cbit | 1 << 6, 509, 1),
    }
