# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a snippet guest's memory lies, and the page tables that map it."""

from __future__ import annotations

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
    for gpa in range(0, TABLES, PAGE_SIZE):
        is_low = gpa < layout.LOW_PAGES * PAGE_SIZE
        flags = PTE_RW | (PTE_USER if is_low else 0)
        tables.map(Gva(gpa), Gpa(gpa), flags=flags)
    # .bss..decrypted of a TD is private (T32).
    _map_directly(tables, machine.config.frames * PAGE_SIZE, has_shared=not machine.config.tdx)
    for page in range(REGIONS[Region.V].pages):
        offset = page * PAGE_SIZE
        tables.map(Gva(VMAP + offset), Gpa(REGION_D + offset))
    for page in range(2):
        tables.map(Gva(SCRATCH + page * PAGE_SIZE), Gpa(layout.TEXT))
    return tables, next(pool)


def _map_directly(tables: PageTables, size: int, has_shared: bool) -> None:
    gpa = 0
    while gpa < size:
        if gpa < BSS_DECRYPTED or REGION_D <= gpa < REGION_L:
            leaf = PAGE_SIZE
        elif gpa < PUD_SIZE or size - gpa < PUD_SIZE:
            leaf = PMD_SIZE
        else:
            leaf = PUD_SIZE
        is_private = gpa != BSS_DECRYPTED or not has_shared
        tables.map(Gva(DIRECT_MAP + gpa), Gpa(gpa), leaf, is_private)
        gpa += leaf
