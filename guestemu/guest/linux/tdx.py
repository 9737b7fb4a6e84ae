# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel meets in a TD beside the SEV guest's platform: an Intel CPU's CPUID and MSRs.

Facts T1, T2 and T37: leaf 0x21 names the TDX module, leaf 0 has to say GenuineIntel (with AMD's
name Linux detects the TD and converts nothing), and there is no leaf above 0x80000008.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from guestemu.abi.cpuid import (
    CPUID_ADDRESS_SIZES,
    CPUID_EXTENDED_MAX,
    CPUID_HYPERVISOR,
    CPUID_KVM_FEATURES,
    KVM_SIGNATURE,
)
from guestemu.abi.tdx import CPUID_TDX, CPUID_TDX_SIGNATURE
from guestemu.guest.td import Td
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.machine import Machine

_SAPPHIRE_RAPIDS: Final = 0x000806F8
_MISC_ENABLE: Final = 0x1A0
_MSRS: Final = {0x140: 0, _MISC_ENABLE: 1, 0x3A: 0, 0x4E: 0, 0x4F: 0, 0x8B: 0, 0xCE: 0}
_VIRTUAL_BITS: Final = 48


def _vendor_leaf(eax: int, name: bytes) -> CpuidLeaf:
    """A leaf with twelve bytes in EBX, EDX, ECX."""
    ebx, edx, ecx = struct.unpack("<3I", name)
    return CpuidLeaf(eax, ebx, ecx, edx)


def td_cpuid(
    base: Callable[[int, int], CpuidLeaf], width: int, kvm_features: int
) -> Callable[[int, int], CpuidLeaf]:
    """CPUID of a TD with `width` bits of guest-physical address, the shared bit included; `base`
    answers the leaves that are the same as in a SEV guest."""
    fixed = {
        0: _vendor_leaf(CPUID_TDX, b"GenuineIntel"),
        CPUID_TDX: _vendor_leaf(0, CPUID_TDX_SIGNATURE),
        CPUID_EXTENDED_MAX: CpuidLeaf(CPUID_ADDRESS_SIZES, 0, 0, 0),
        CPUID_ADDRESS_SIZES: CpuidLeaf(width | _VIRTUAL_BITS << 8, 0, 0, 0),
        CPUID_HYPERVISOR: CpuidLeaf(CPUID_KVM_FEATURES, *struct.unpack("<3I", KVM_SIGNATURE)),
        CPUID_KVM_FEATURES: CpuidLeaf(kvm_features, 0, 0, 0),
    }

    def cpuid(function: int, subfunction: int) -> CpuidLeaf:
        if function in fixed:
            return fixed[function]
        if function > CPUID_ADDRESS_SIZES or CPUID_HYPERVISOR < function < CPUID_EXTENDED_MAX:
            return CpuidLeaf(0, 0, 0, 0)
        found = base(function, subfunction)
        return found._replace(eax=_SAPPHIRE_RAPIDS) if function == 1 else found

    return cpuid


def attach_td(
    machine: Machine, base: Callable[[int, int], CpuidLeaf], kvm_features: int
) -> Td | None:
    """The TD that the machine's configuration asks for, None for others; before guest code runs.

    `base` answers CPUID for a SEV guest.
    """
    if not machine.config.tdx:
        return None
    cpuid = td_cpuid(base, machine.bit.mask.bit_length(), kvm_features)
    machine.hooks.cpuid_function = cpuid
    machine.msrs.platform.update(_MSRS)
    return Td(machine, cpuid)
