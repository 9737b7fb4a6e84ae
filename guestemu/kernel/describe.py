# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel is: the functions that matter here, and its upstream version.

How it behaves does not follow from either: `outcomes.defects` runs it.
"""

from __future__ import annotations

import re
from typing import Final

from guestemu.guest.linux.kernel import Kernel

SYMBOLS: Final = (
    "set_memory_decrypted",
    "set_memory_encrypted",
    "early_set_memory_decrypted",
    "early_set_memory_encrypted",
    "__set_memory_enc_pgtable",
    "__change_page_attr_set_clr",
    "cpa_flush",
    "amd_enc_status_change_prepare",
    "amd_enc_status_change_finish",
    "enc_dec_hypercall",
    "kvm_sev_hc_page_enc_status",
    "kvm_init_platform",
    "kvm_guest_cpu_offline",
    "set_memory_enc_stop_conversion",
    "dma_alloc_attrs",
    "dma_free_attrs",
    "dma_atomic_pool_init",
    "swiotlb_update_mem_attributes",
    "rest_init",
)


def upstream_version(kernel: Kernel, elf: bytes) -> str:
    """The upstream version: Debian names it in the banner only ("Debian 6.1.192-2"), other builds
    in front of a name of their own ("7.3.4-local", "6.18.0-rc2+")."""
    banner = re.search(rb"Linux version \d[^\n\0]{0,400}", elf)
    names = re.findall(rb"Debian (\d+\.\d+\.\d+)", banner.group()) if banner else []
    series = kernel.version.split(".")[:2]
    for name in reversed(names):
        if name.decode().split(".")[:2] == series:
            return str(name.decode())
    own = re.match(r"\d+(\.\d+)+(-rc\d+)?", kernel.version)
    return own.group() if own else kernel.version
