# SPDX-License-Identifier: GPL-2.0-or-later
"""The RAM part of QEMU's migration stream: flags, page headers, records.

All numbers are big-endian. A record begins with a be64: the page's offset in its RAM block, with
the flags in the bits below the target page size. Without CONTINUE a length byte and the block's
name follow. Source: D8b, D8c, D12, D25, F17; migration/ram.c.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.host.qemu.interfaces import Region, SendStart, SevPacket

FLAG_ZERO: Final = 0x02
"""A page of one repeated byte, which follows (RAM_SAVE_FLAG_ZERO, once _COMPRESS)."""
FLAG_MEM_SIZE: Final = 0x04
"""Total RAM in the address bits, then the list of blocks, up to that total."""
FLAG_PAGE: Final = 0x08
"""4096 bytes follow."""
FLAG_EOS: Final = 0x10
"""End of this section."""
FLAG_CONTINUE: Final = 0x20
"""Same block as the record before; no name follows."""
FLAG_ENCRYPTED: Final = 0x200
"""ENCRYPTED_PAGE in 2019 v2, ENCRYPTED_DATA with a be32 subtype since v3."""
FLAG_BITMAP_V2: Final = 0x400
"""PAGE_ENCRYPTED_BITMAP of 2019 v1 and v2; bit 10 is an address bit where pages are 1 KiB."""

SUBTYPE_PAGE: Final = 1
SUBTYPE_STATUS: Final = 2
"""The bitmap (v3, 2020) or the list of shared regions (2021)."""
SUBTYPE_HELPER_PAGE: Final = 4
"""A page that the migration helper encrypted (F17)."""

BITMAP_CONTINUE: Final = 1
BITMAP_END: Final = 2
"""be32 before each range of a bitmap, and behind the last."""

MAX_BLOB: Final = 0x4000
"""Bytes of the largest certificate, session or packet, as KVM limits them (E24, E25)."""
MIN_PAGE_BITS: Final = 10
"""QEMU's smallest target page: 1 KiB."""


class Format(enum.Enum):
    """How page status and encrypted pages look on the wire."""

    FLAGS_2019_V2 = "2019-v2"
    """Flags 0x200 and 0x400, no subtypes (D8b)."""
    BITMAP = "bitmap"
    """Flag 0x200 with subtypes; subtype 2 is a bitmap (D8c, D12)."""
    LIST = "list"
    """The same; subtype 2 is the list of shared regions (D25)."""


class BlockEntry(msgspec.Struct, frozen=True):
    """A RAM block in the list of MEM_SIZE: name and used length in bytes."""

    name: str
    length: int


class BlockList(msgspec.Struct, frozen=True):
    """MEM_SIZE: `total` bytes of RAM, in these blocks."""

    total: int
    blocks: tuple[BlockEntry, ...]


class ZeroPage(msgspec.Struct, frozen=True):
    """A page filled with the byte `fill`; `offset` in bytes into the block."""

    block: str
    offset: int
    fill: int = 0


class PlainPage(msgspec.Struct, frozen=True):
    """The raw bytes of a page."""

    block: str
    offset: int
    data: bytes


class EncryptedPage(msgspec.Struct, frozen=True):
    """A page through the firmware; `start` is there with the first one only."""

    block: str
    offset: int
    start: SendStart | None
    packet: SevPacket


class HelperPage(msgspec.Struct, frozen=True):
    """A page that the migration helper encrypted (subtype 4)."""

    block: str
    offset: int
    packet: SevPacket


class BitmapRange(msgspec.Struct, frozen=True):
    """Page status of a range: `start` is its base GPA in bytes; the number of pages; the bitmap
    with as many bytes as the wire's size field said."""

    start: int
    pages: int
    bits: bytes


class StatusBitmap(msgspec.Struct, frozen=True):
    """The page encryption bitmap, in ranges."""

    ranges: tuple[BitmapRange, ...]


class SharedRegions(msgspec.Struct, frozen=True):
    """The list of shared regions."""

    regions: tuple[Region, ...]


class EndOfSection(msgspec.Struct, frozen=True):
    """EOS."""


Record = (
    BlockList
    | ZeroPage
    | PlainPage
    | EncryptedPage
    | HelperPage
    | StatusBitmap
    | SharedRegions
    | EndOfSection
)


def page_word(offset: int, flags: int, page_bits: int = PAGE_SHIFT) -> int:
    """The be64 in front of a record. `InputError` for an offset that is not page-aligned; flags
    that reach into the address bits are written all the same, as QEMU would (M75)."""
    if offset & (1 << page_bits) - 1 or offset < 0:
        raise InputError(
            f"offset {offset:#x} of a page record: not a multiple of {1 << page_bits}; pass the"
            " offset of a page"
        )
    return offset | flags


def split_word(word: int, page_bits: int = PAGE_SHIFT) -> tuple[int, int]:
    """(offset, flags) of a be64 with target pages of 1 << `page_bits` bytes. With 1 KiB pages flag
    0x400 ends up in the offset (D8b, M75)."""
    mask = (1 << page_bits) - 1
    return word & ~mask, word & mask


def check_data(data: bytes) -> bytes:
    """`data` if it is one page, else `InputError`."""
    if len(data) != PAGE_SIZE:
        raise InputError(f"page data of {len(data)} bytes: a page has {PAGE_SIZE}")
    return data
