# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's memory: RAM blocks in ram_addr_t space, where they appear in the guest, KVM's slots.

A RAM block has a place in ram_addr_t space for ever, and appears in the guest through sections:
pc.ram below the PCI hole and, through an alias, above it. So a page's ram_addr_t is not its GPA
(D23, D33), and a block that is unplugged keeps its ram_addr_t without any GPA (F7).
Source: softmmu/physmem.c find_ram_offset(), hw/i386/pc.c pc_memory_init(), accel/kvm/kvm-all.c.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, Gfn, Gpa, RamAddr
from guestemu.abi.errors import InputError

BLOCK_ALIGN: Final = 64 << PAGE_SHIFT
"""Blocks begin at multiples of 64 pages, so bitmaps of whole blocks are word-aligned (D9)."""


class BlockKind(enum.Enum):
    """What a RAM block is to the migration code."""

    RAM = "ram"
    ROM = "rom"
    FLASH_CODE = "flash-code"
    FLASH_VARS = "flash-vars"
    DEVICE = "device"


class RamBlock(msgspec.Struct, frozen=True):
    """A RAM block: `size` in bytes, `mr_addr` is the address of its memory region, which is 0 for
    pc.ram whatever its aliases say (D23)."""

    name: str
    ram_addr: RamAddr
    size: int
    kind: BlockKind
    mr_addr: Gpa

    @property
    def pages(self) -> int:
        """Its size in pages."""
        return self.size >> PAGE_SHIFT


class Section(msgspec.Struct, frozen=True):
    """A MemoryRegionSection: `size` bytes of `block` from `offset` on appear at `gpa`."""

    gpa: Gpa
    size: int
    block: RamBlock
    offset: int

    @property
    def end(self) -> int:
        """The GPA behind it."""
        return self.gpa + self.size

    @property
    def ram_addr(self) -> RamAddr:
        """The ram_addr_t of its first byte."""
        return RamAddr(self.block.ram_addr + self.offset)


class KvmSlot(msgspec.Struct, frozen=True):
    """A KVM memory slot: `pages` pages at `gfn`, backed by ram_addr_t `ram_addr`."""

    index: int
    gfn: Gfn
    pages: int
    ram_addr: RamAddr


class MemoryMap:
    """The blocks and sections of one machine. Sections do not overlap.

    `max_slot_pages` splits KVM's slots (KVMMachine's max_slot_size): a section then has several.
    `InputError` for what does not fit; nothing is changed then.
    """

    def __init__(self, max_slot_pages: int = 0) -> None:
        if max_slot_pages % 64:
            raise InputError(f"max_slot_pages {max_slot_pages}: give a multiple of 64")
        self._max_slot_pages = max_slot_pages
        self._blocks: dict[str, RamBlock] = {}
        self._sections: tuple[Section, ...] = ()
        self._slots: tuple[tuple[Section, tuple[KvmSlot, ...]], ...] | None = None
        self._next = 0

    def copy(self) -> MemoryMap:
        """One that changes apart from this."""
        other = MemoryMap(self._max_slot_pages)
        other._blocks = dict(self._blocks)
        other._place(self._sections)
        other._next = self._next
        return other

    @property
    def blocks(self) -> Mapping[str, RamBlock]:
        """All blocks by name, mapped or not."""
        return self._blocks

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections from low to high GPA."""
        return self._sections

    @property
    def ram_pages(self) -> int:
        """Pages of ram_addr_t space, up to the end of the last block."""
        return self._next >> PAGE_SHIFT

    @property
    def top_gfn(self) -> int:
        """The gfn behind the highest section."""
        return self._sections[-1].end >> PAGE_SHIFT if self._sections else 0

    def add_block(
        self, name: str, size: int, kind: BlockKind = BlockKind.RAM, mr_addr: int = 0
    ) -> RamBlock:
        """A new block of `size` bytes behind the last, mapped nowhere yet."""
        if name in self._blocks:
            raise InputError(f"RAM block {name!r} exists; give another name")
        if size <= 0 or size & PAGE_MASK:
            raise InputError(f"RAM block {name!r}: {size:#x} bytes; give whole pages")
        block = RamBlock(name, RamAddr(self._next), size, kind, Gpa(mr_addr))
        self._blocks[name] = block
        self._next = self._next + size + BLOCK_ALIGN - 1 & -BLOCK_ALIGN
        return block

    def map(self, name: str, gpa: int, offset: int = 0, size: int | None = None) -> Section:
        """Makes `size` bytes (None: the rest) of a block from `offset` on appear at `gpa`."""
        block = self._block(name)
        size = block.size - offset if size is None else size
        if (gpa | offset | size) & PAGE_MASK or size <= 0 or offset < 0:
            raise InputError(f"section at {gpa:#x} of block {name!r}: give whole pages")
        if offset + size > block.size:
            raise InputError(f"section at {gpa:#x}: beyond block {name!r} of {block.size:#x} bytes")
        section = Section(Gpa(gpa), size, block, offset)
        for other in self._sections:
            if section.gpa < other.end and other.gpa < section.end:
                raise InputError(
                    f"section at {gpa:#x} of block {name!r}: overlaps block {other.block.name!r}"
                    f" at {other.gpa:#x}; unmap that first"
                )
        self._place(sorted([*self._sections, section], key=lambda one: one.gpa))
        return section

    def unmap(self, gpa: int, size: int) -> None:
        """Nothing appears in [gpa, gpa + size) any more (PAM, SMM or an unplug); sections that
        reach outside are cut (D33)."""
        end = gpa + size
        if (gpa | size) & PAGE_MASK:
            raise InputError(f"unmap of {gpa:#x}+{size:#x}: give whole pages")
        kept: list[Section] = []
        for one in self._sections:
            if one.gpa < gpa:
                low = min(one.end, gpa) - one.gpa
                kept.append(Section(one.gpa, low, one.block, one.offset))
            if one.end > end:
                first = max(one.gpa, end)
                offset = one.offset + first - one.gpa
                kept.append(Section(Gpa(first), one.end - first, one.block, offset))
        self._place(kept)

    def _place(self, sections: Iterable[Section]) -> None:
        self._sections = tuple(sections)
        self._slots = None

    def hot_plug(self, name: str, size: int, gpa: int) -> RamBlock:
        """A DIMM: a new block that appears at `gpa`."""
        block = self.add_block(name, size, mr_addr=gpa)
        try:
            self.map(name, gpa)
        except InputError:
            del self._blocks[name]
            self._next = block.ram_addr
            raise
        return block

    def hot_unplug(self, name: str, *, keeps_block: bool = False) -> None:
        """All sections of the block go. With `keeps_block` (virtio-mem) its memory and ram_addr_t
        stay, without GPA (F7); else the block also goes. No page status changes (D34)."""
        self._block(name)
        self._place(one for one in self._sections if one.block.name != name)
        if not keeps_block:
            del self._blocks[name]

    def _block(self, name: str) -> RamBlock:
        if name not in self._blocks:
            raise InputError(f"RAM block {name!r}: unknown; there are {', '.join(self._blocks)}")
        return self._blocks[name]

    def slots(self) -> tuple[KvmSlot, ...]:
        """KVM's slots: one for each section, or several of at most `max_slot_pages`."""
        return tuple(slot for _, slots in self.slots_by_section() for slot in slots)

    def slots_by_section(self) -> tuple[tuple[Section, tuple[KvmSlot, ...]], ...]:
        """Each section with its slots."""
        if self._slots is None:
            self._slots = self._split_slots()
        return self._slots

    def _split_slots(self) -> tuple[tuple[Section, tuple[KvmSlot, ...]], ...]:
        found: list[tuple[Section, tuple[KvmSlot, ...]]] = []
        index = 0
        for section in self._sections:
            pages = section.size >> PAGE_SHIFT
            step = self._max_slot_pages or pages
            slots: list[KvmSlot] = []
            for first in range(0, pages, step):
                gfn = Gfn((section.gpa >> PAGE_SHIFT) + first)
                ram_addr = RamAddr(section.ram_addr + (first << PAGE_SHIFT))
                slots.append(KvmSlot(index, gfn, min(step, pages - first), ram_addr))
                index += 1
            found.append((section, tuple(slots)))
        return tuple(found)

    def ram_addr_of(self, gpa: int) -> RamAddr | None:
        """The ram_addr_t of a GPA; None where no block appears."""
        for one in self._sections:
            if one.gpa <= gpa < one.end:
                return RamAddr(one.ram_addr + gpa - one.gpa)
        return None

    def gpa_of(self, address: RamAddr) -> Gpa | None:
        """The GPA of a ram_addr_t (the lowest, if several); None if it is mapped nowhere."""
        for one in self._sections:
            if one.ram_addr <= address < one.ram_addr + one.size:
                return Gpa(one.gpa + address - one.ram_addr)
        return None

    def block_of(self, address: RamAddr) -> RamBlock | None:
        """The block that holds a ram_addr_t."""
        for block in self._blocks.values():
            if block.ram_addr <= address < block.ram_addr + block.size:
                return block
        return None


class PcLayout(msgspec.Struct, frozen=True):
    """A PC: `ram` bytes, of which those from `hole_start` on appear at `above_base` (q35's hole is
    from 2 GiB or 2.75 GiB to 4 GiB). `vga` bytes of device RAM appear at `vga_base`, if not 0."""

    ram: int
    hole_start: int = 0x8000_0000
    above_base: int = 0x1_0000_0000
    vga: int = 0
    vga_base: int = 0xFD00_0000
    max_slot_pages: int = 0


def pc_machine(layout: PcLayout) -> MemoryMap:
    """The memory map of a PC: pc.ram below and above the hole, vga.vram in it."""
    machine = MemoryMap(layout.max_slot_pages)
    machine.add_block("pc.ram", layout.ram)
    below = min(layout.ram, layout.hole_start)
    machine.map("pc.ram", 0, 0, below)
    if layout.ram > below:
        machine.map("pc.ram", layout.above_base, below)
    if layout.vga:
        machine.add_block("vga.vram", layout.vga, BlockKind.DEVICE, layout.vga_base)
        machine.map("vga.vram", layout.vga_base)
    return machine
