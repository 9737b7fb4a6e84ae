# SPDX-License-Identifier: GPL-2.0-or-later
"""What an SNP guest finds in memory at its launch: CC blob, secrets page, CPUID page.

A boot loader without EFI hands the blob over as setup_data of type SETUP_CC_BLOB; it points to the
other two (struct cc_blob_sev_info in arch/x86/include/asm/sev.h, snp_cpuid_table in
arch/x86/include/asm/sev.h or kernel/sev-shared.c, Linux 6.1 and 6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.cpuid import (
    CPUID_ADDRESS_SIZES,
    CPUID_EXTENDED_MAX,
    CPUID_HYPERVISOR,
    CPUID_KVM_FEATURES,
    CPUID_MEMORY_ENCRYPTION,
)
from guestemu.machine.cpuid import CpuidLeaf

SETUP_CC_BLOB: Final = 7

_SETUP_DATA: Final = struct.Struct("<QIII")
_BLOB: Final = struct.Struct("<IHHQIIQII")
_MAGIC: Final = 0x45444D41
_BLOB_VERSION: Final = 1
_SECRETS_VERSION: Final = 2
_TABLE_HEADER: Final = struct.Struct("<IIQ")
_LEAF: Final = struct.Struct("<IIQQIIIIQ")
_XCR0_X87: Final = 1
_LEAVES: Final = (
    (0, 0),
    (1, 0),
    (7, 0),
    (0xD, 0),
    (0xD, 1),
    (CPUID_HYPERVISOR, 0),
    (CPUID_KVM_FEATURES, 0),
    (CPUID_EXTENDED_MAX, 0),
    (CPUID_EXTENDED_MAX + 1, 0),
    (CPUID_ADDRESS_SIZES, 0),
    (CPUID_MEMORY_ENCRYPTION, 0),
)


def launch_pages(gpa: int, cpuid: Callable[[int, int], CpuidLeaf]) -> bytes:
    """Three pages for the page-aligned `gpa` below 4 GiB: setup_data with the blob, secrets, CPUID.

    `gpa` is what boot_params.hdr.setup_data gets. The secrets page has a version and no keys: it
    names no SVSM, so that the kernel finds itself at VMPL 0.
    """
    blob = gpa + PAGE_SIZE // 2
    secrets = gpa + PAGE_SIZE
    table = gpa + 2 * PAGE_SIZE
    first = bytearray(PAGE_SIZE)
    _SETUP_DATA.pack_into(first, 0, 0, SETUP_CC_BLOB, 4, blob)
    sizes = (secrets, PAGE_SIZE, 0, table, PAGE_SIZE, 0)
    _BLOB.pack_into(first, blob - gpa, _MAGIC, _BLOB_VERSION, 0, *sizes)
    return (
        bytes(first)
        + _SECRETS_VERSION.to_bytes(4, "little").ljust(PAGE_SIZE, b"\0")
        + _cpuid_page(cpuid)
    )


def _cpuid_page(cpuid: Callable[[int, int], CpuidLeaf]) -> bytes:
    page = bytearray(PAGE_SIZE)
    _TABLE_HEADER.pack_into(page, 0, len(_LEAVES), 0, 0)
    for index, (function, subfunction) in enumerate(_LEAVES):
        xcr0 = _XCR0_X87 if function == 0xD else 0
        _LEAF.pack_into(
            page,
            _TABLE_HEADER.size + _LEAF.size * index,
            *(function, subfunction, xcr0, 0),
            *cpuid(function, subfunction),
            0,
        )
    return bytes(page)
