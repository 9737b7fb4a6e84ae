# SPDX-License-Identifier: GPL-2.0-or-later
"""The zero page of the 64-bit boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst)."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE

E820_RAM: Final = 1
E820_RESERVED: Final = 2
E820_ACPI: Final = 3
E820_NVS: Final = 4

_ACPI_RSDP: Final = 0x70
_E820_COUNT: Final = 0x1E8
_HEADER: Final = 0x1F1
_BOOT_FLAG: Final = 0x1FE
_MAGIC: Final = 0x202
_TYPE_OF_LOADER: Final = 0x210
_LOAD_FLAGS: Final = 0x211
_CMD_LINE_PTR: Final = 0x228
_CMD_LINE_SIZE: Final = 0x238
_SETUP_DATA: Final = 0x250
_E820_TABLE: Final = 0x2D0
_LOADER_UNDEFINED: Final = 0xFF
_LOADED_HIGH: Final = 1
_PROTOCOL: Final = 0x020F


class MemoryRange(msgspec.Struct, frozen=True):
    """One line of the e820 map: bytes."""

    start: int
    size: int
    kind: int = E820_RAM


def pc_memory_map(size: int, loader_end: int) -> tuple[MemoryRange, ...]:
    """RAM of `size` bytes as a PC firmware without a PCI hole reports it.

    Memory below `loader_end` (whole pages, under 640 KiB) is the boot loader's and reserved.
    """
    return (
        MemoryRange(0, loader_end, E820_RESERVED),
        MemoryRange(loader_end, 0x9FC00 - loader_end),
        MemoryRange(0x9FC00, 0x400, E820_RESERVED),
        MemoryRange(0xF0000, 0x10000, E820_RESERVED),
        MemoryRange(0x100000, size - 0x100000),
    )


def make_boot_params(
    memory: tuple[MemoryRange, ...],
    command_line_at: int,
    setup_data_at: int = 0,
    rsdp_at: int = 0,
) -> bytes:
    """The 4096 bytes of `struct boot_params`; addresses are physical."""
    page = bytearray(PAGE_SIZE)
    struct.pack_into("<Q", page, _ACPI_RSDP, rsdp_at)
    page[_HEADER] = 4
    struct.pack_into("<H", page, _BOOT_FLAG, 0xAA55)
    page[_MAGIC : _MAGIC + 4] = b"HdrS"
    struct.pack_into("<H", page, _MAGIC + 4, _PROTOCOL)
    page[_TYPE_OF_LOADER] = _LOADER_UNDEFINED
    page[_LOAD_FLAGS] = _LOADED_HIGH
    struct.pack_into("<I", page, _CMD_LINE_PTR, command_line_at)
    struct.pack_into("<I", page, _CMD_LINE_SIZE, 2047)
    struct.pack_into("<Q", page, _SETUP_DATA, setup_data_at)
    page[_E820_COUNT] = len(memory)
    for index, part in enumerate(memory):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * index, part.start, part.size, part.kind)
    return bytes(page)
