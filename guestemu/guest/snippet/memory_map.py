# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a snippet guest's memory lies, and the page tables that map it."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, PUD_SIZE, Gpa, Gva
from guestemu.abi.regions import REGIONS, Region
from guestemu.abi.x86 import PTE_RW, PTE_USER
from guestemu.machine import layout
from guestemu.machine.machine import Machine
from guestemu.machine.paging import PageTables

DIRECT_MAP: Final = 0xFFFF_8880_0000_0000
VMAP: Final = 0xFFFF_C900_0000_0000
SCRATCH: Final = 0xFFFF_FFFF_FF5F_C000

STACKS: Final = 0x30000
STACK_SIZE: Final = 0x2000
TABLES: Final = 0x40000
BSS_DECRYPTED: Final = 0x200000
REGION_D: Final = 0x400000
REGION_L: Final = 0x800000
DMA_ARENA: Final = 0x1000000
REGION_G: Final = 2 * PUD_SIZE


def build_page_tables(machine: Machine) -> tuple[PageTables, Gpa]:
    """The guest's tables, and the first page that is left for more of them.

    Low memory 1:1 in 4 KiB leaves; the direct map in leaves of 4 KiB up to `BSS_DECRYPTED` and in
    region D, of 2 MiB elsewhere, of 1 GiB above 1 GiB where whole ones fit; region V; two scratch
    pages.
    """
    count = (BSS_DECRYPTED - TABLES) // PAGE_SIZE
    pool = iter(machine.pool(TABLES // PAGE_SIZE, count))
    tables = PageTables(machine.ram, machine.bit, next(pool), pool)
    low = layout.LOW_PAGES
    tables.map(Gva(0), Gpa(0), flags=PTE_RW | PTE_USER, count=low)
    rest = Gpa(low * PAGE_SIZE)
    tables.map(Gva(rest), rest, count=TABLES // PAGE_SIZE - low)
    # .bss..decrypted of a TD is private (T32).
    _map_directly(tables, machine.config.frames * PAGE_SIZE, has_shared=not machine.config.tdx)
    tables.map(Gva(VMAP), Gpa(REGION_D), count=REGIONS[Region.V].pages)
    for page in range(2):
        tables.map(Gva(SCRATCH + page * PAGE_SIZE), Gpa(layout.TEXT))
    return tables, next(pool)


def _map_directly(tables: PageTables, size: int, has_shared: bool) -> None:
    whole = max(size // PUD_SIZE, 1) * PUD_SIZE
    starts = (0, BSS_DECRYPTED, REGION_D, REGION_L, PUD_SIZE, whole, size)
    leaves = (PAGE_SIZE, PMD_SIZE, PAGE_SIZE, PMD_SIZE, PUD_SIZE, PMD_SIZE)
    for leaf, (start, end) in zip(leaves, pairwise(starts), strict=True):
        count = -(-(min(end, size) - start) // leaf)
        if count > 0:
            is_private = start != BSS_DECRYPTED or not has_shared
            tables.map(Gva(DIRECT_MAP + start), Gpa(start), leaf, is_private, count=count)
