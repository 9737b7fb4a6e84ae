# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a booted kernel ready for programs: the regions that they name.

Regions are memory that the kernel's own page allocator gave out, brought to the layout that
programs expect by the kernel's own `set_memory_4k` and `vmap`.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Gpa, Gva
from guestemu.abi.errors import InputError
from guestemu.abi.regions import REGIONS, Region
from guestemu.guest.base import BootExit, PlacedRegion
from guestemu.guest.linux.boot import BootedKernel
from guestemu.guest.linux.calls import KernelCalls
from guestemu.guest.linux.giant import reserve_giant
from guestemu.guest.linux.kernel import KERNEL_MAP
from guestemu.machine.paging import walk

GFP_KERNEL: Final = 0xCC0
_MAX_ORDER: Final = 10
_ORDER_PAGES: Final = 1 << _MAX_ORDER
_MAX_BLOCKS: Final = 16
_VM_MAP: Final = 0x4
_PAGE_KERNEL: Final = 0x8000_0000_0000_0163
GET_FREE_PAGES: Final = ("__get_free_pages", "get_free_pages_noprof")
_SETUP_BUDGET: Final = 100_000_000


class Prepared(msgspec.Struct):
    """A kernel that stands at its stop with its regions placed.

    `shared_frames` are mapped shared, `shared_current` were last written so: a frame that was
    mapped with C=0 and not written since holds ciphertext of what it held before. In a TD those are
    the frames that the host has as shared.
    `boot_exits` are the exits of the boot, for hosts.
    """

    booted: BootedKernel
    regions: dict[Region, PlacedRegion]
    shared_frames: list[int]
    shared_current: list[int]
    boot_exits: list[BootExit]


def page_table_root(booted: BootedKernel) -> Gpa:
    """GPA of the kernel's top-level page table."""
    machine = booted.machine
    return Gpa(machine.current.read_register("cr3") & ~0xFFF & ~machine.pte_cbit)


def prepare(booted: BootedKernel, boot_exits: list[BootExit]) -> Prepared:
    """Places the regions. Raises `InputError` naming what a kernel lacks for it."""
    setup = _Setup(booted)
    regions = setup.place_regions()
    setup.calls.context.restore()
    shared = setup.shared_frames()
    td = booted.platform.td
    current = booted.machine.ram.shared_current() if td is None else td.sept.shared()
    return Prepared(booted, regions, shared, current, boot_exits)


class _Setup:
    def __init__(self, booted: BootedKernel) -> None:
        self.name = booted.kernel.name
        self.booted = booted
        self.kernel = booted.kernel
        self.machine = booted.machine
        self.calls = KernelCalls(booted, _SETUP_BUDGET)
        self.root = page_table_root(booted)
        self.direct_map = Gva(self.calls.read_u64(booted.kernel.address("page_offset_base")))

    def shared_frames(self) -> list[int]:
        """Frames whose leaf in the direct map or in the kernel image has C=0."""
        frames: list[int] = []
        ram = self.machine.ram
        bit = self.machine.bit
        for base, pages in (
            (self.direct_map, ram.frames),
            (Gva(KERNEL_MAP), min(ram.frames, 1 << 18)),
        ):
            page = 0
            while page < pages:
                leaf = walk(ram, bit.mask, self.root, Gva(base + (page << PAGE_SHIFT)))
                size = 1 << 9 * (leaf.level - 1)
                first = page & ~(size - 1)
                if leaf.is_present and leaf.level <= 3 and not bit.is_private(leaf.entry):
                    frames.extend(range(first, min(first + size, pages)))
                page = first + size
        return frames

    def place_regions(self) -> dict[Region, PlacedRegion]:
        giant = reserve_giant(self.booted, self.calls, self.root)
        small, large = self._allocate_blocks()
        for pages in range(0, _ORDER_PAGES, PMD_SIZE // PAGE_SIZE):
            self.calls.call("set_memory_4k", small + (pages << PAGE_SHIFT), PMD_SIZE // PAGE_SIZE)
        regions = {
            Region.D: PlacedRegion(Gva(small), self._gpa_of(small), REGIONS[Region.D].pages),
            Region.L: PlacedRegion(Gva(large), self._gpa_of(large), REGIONS[Region.L].pages),
        }
        regions[Region.V] = self._make_alias(small)
        if giant is not None:
            regions[Region.G] = giant
        return regions

    def _allocate_blocks(self) -> tuple[int, int]:
        """Addresses of a 4 MiB block and of two adjacent ones."""
        size = _ORDER_PAGES * PAGE_SIZE
        blocks: list[int] = []
        while len(blocks) < _MAX_BLOCKS:
            blocks = sorted([*blocks, self.calls.must(GET_FREE_PAGES, GFP_KERNEL, _MAX_ORDER)])
            for low, high in pairwise(blocks):
                others = [block for block in blocks if block not in {low, high}]
                if high - low == size and others:
                    return others[0], low
        raise InputError(f"{self.name}: no 8 MiB of contiguous memory; give it more memory")

    def _gpa_of(self, address: int) -> Gpa:
        return Gpa(address - self.direct_map)

    def _make_alias(self, first: int) -> PlacedRegion:
        """vmap() of D's first frames."""
        pages = REGIONS[Region.V].pages
        vmemmap = self.calls.read_u64(self.kernel.address("vmemmap_base"))
        array = self.calls.must(GET_FREE_PAGES, GFP_KERNEL, 0)
        gfn = self._gpa_of(first) >> PAGE_SHIFT
        size = self.kernel.btf.size("page")
        entries = struct.pack(f"<{pages}Q", *(vmemmap + (gfn + i) * size for i in range(pages)))
        self.machine.current.write_memory(Gva(array), entries)
        flags = self.machine.bit.select(_PAGE_KERNEL, private=True)
        address = self.calls.must("vmap", array, pages, _VM_MAP, flags)
        return PlacedRegion(Gva(address), self._gpa_of(first), pages)
