# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's August 2021 patch set at migration: the shared-region list on the wire, and which gfn a
RAM block's page has.

Source: D22, D23, D25, M55, M56: sev_save_outgoing_shared_regions_list(),
sev_load_incoming_shared_regions_list() as posted on 4 August 2021. The stream is big-endian:
{ be32 1, be32 gfn_start, be32 gfn_end } for each region, then be32 2.
"""

from __future__ import annotations

import struct
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, U32_MASK, Gfn, Gpa
from guestemu.host.kvm.region_list import Region

SHARED_REGION_LIST_CONT: Final = 1
SHARED_REGION_LIST_END: Final = 2

_WORD: Final = struct.Struct(">I")


def save_regions(regions: list[Region]) -> bytes:
    """The list as sent once, after the last pages; a gfn of 2^32 or more loses its upper bits."""
    words = []
    for start, end in regions:
        words += [SHARED_REGION_LIST_CONT, start & U32_MASK, end & U32_MASK]
    words.append(SHARED_REGION_LIST_END)
    return b"".join(_WORD.pack(word) for word in words)


def gfn_of_block_page(page: int, region_gpa: Gpa) -> Gfn:
    """The gfn that the patch set takes for page `page` of a RAM block (D23).

    `region_gpa` is the address of the block's memory region, 0 for pc.ram. The part of pc.ram above
    the PCI hole is mapped through an alias at 4 GiB, which this does not know: the result is too
    low there by the size of the hole.
    """
    return Gfn(page + (region_gpa >> PAGE_SHIFT))
