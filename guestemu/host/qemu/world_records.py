# SPDX-License-Identifier: GPL-2.0-or-later
"""Records of a migration stream whose numbers a program chose: what a hostile source would send."""

from __future__ import annotations

import struct
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE, U32_MASK, U64_MASK
from guestemu.host.qemu.stream_format import (
    BITMAP_CONTINUE,
    BITMAP_END,
    FLAG_BITMAP_V2,
    FLAG_ENCRYPTED,
    FLAG_MEM_SIZE,
    FLAG_PAGE,
    FLAG_ZERO,
    SUBTYPE_PAGE,
    SUBTYPE_STATUS,
    Format,
)

BITMAP: Final = 0
KINDS: Final = 6
BODY_LIMIT: Final = 1 << 14
"""Bytes that really follow, whatever the record promises."""

_NAME: Final = b"\x06pc.ram"
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_RANGE: Final = struct.Struct(">QQQ")
_REGION: Final = struct.Struct(">III")
_REGIONS: Final = 8


def record_bytes(wire: Format, kind: int, numbers: tuple[int, int, int], filler: int) -> bytes:
    """A record of `kind` (modulo `KINDS`): 0 the page status as a bitmap (base GPA, pages, size), 1
    as a list (start, end, count), 2 an encrypted page (offset, length of the packet header, of the
    data), 3 the list of blocks (total, length), 4 a plain or zero page (offset), 5 raw words."""
    first, second, third = (number & U64_MASK for number in numbers)
    body = bytes([filler])
    match kind % KINDS:
        case 0:
            part = _RANGE.pack(first, second, third) + body * min(third, BODY_LIMIT)
            if wire is Format.FLAGS_2019_V2:
                return _U64.pack(FLAG_BITMAP_V2) + part
            inner = _U32.pack(BITMAP_CONTINUE) + part + _U32.pack(BITMAP_END)
            return _status(inner)
        case 1:
            region = _REGION.pack(1, first & U32_MASK, second & U32_MASK)
            return _status(region * (third % _REGIONS) + _U32.pack(2))
        case 2:
            return _encrypted(wire, first, second & U32_MASK, third & U32_MASK, body)
        case 3:
            return _U64.pack(first & -PAGE_SIZE | FLAG_MEM_SIZE) + _NAME + _U64.pack(second)
        case 4:
            flag = FLAG_PAGE if second & 1 else FLAG_ZERO
            size = PAGE_SIZE if second & 1 else 1
            return _U64.pack(first & -PAGE_SIZE | flag) + _NAME + body * size
        case _:
            return _RANGE.pack(first, second, third) + body * (filler & 0x3F)


def plain_numbers(
    kind: int, first: int, second: int, third: int, filler: int
) -> tuple[int, int, int, int, int]:
    """Numbers whose record the reader takes in the same way: what `record_bytes` cuts off is 0, and
    so is the content of bitmaps, packets and pages, which the reader only counts."""
    kind %= KINDS
    match kind:
        case 0:
            return kind, first, second, third, 0
        case 1:
            regions = third % _REGIONS
            return kind, first & U32_MASK, second & U32_MASK, regions, 0
        case 2:
            return kind, first & -PAGE_SIZE, second & U32_MASK, third & U32_MASK, 0
        case 3:
            return kind, first & -PAGE_SIZE, second, 0, 0
        case 4:
            return kind, first & -PAGE_SIZE, second & 1, 0, 0
        case _:
            return kind, first, second, third, filler


def _status(inner: bytes) -> bytes:
    return _U64.pack(FLAG_ENCRYPTED) + _NAME + _U32.pack(SUBTYPE_STATUS) + inner


def _encrypted(wire: Format, offset: int, header: int, data: int, body: bytes) -> bytes:
    subtype = b"" if wire is Format.FLAGS_2019_V2 else _U32.pack(SUBTYPE_PAGE)
    start = _U32.pack(0) + (_U32.pack(16) + body * 16) * 2
    blobs = [_U32.pack(length) + body * min(length, BODY_LIMIT) for length in (header, data)]
    return b"".join(
        (_U64.pack(offset & -PAGE_SIZE | FLAG_ENCRYPTED), _NAME, subtype, start, *blobs)
    )
