# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the RAM part of a migration stream: ram_save_setup(), ram_save_page(),
sev_save_outgoing_page() and the status at the end, in the format of a patch set (D8b to D25)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_MASK
from guestemu.abi.errors import InputError
from guestemu.host.qemu.interfaces import Channel, Region, SendStart, SevPacket
from guestemu.host.qemu.stream_format import (
    BITMAP_CONTINUE,
    BITMAP_END,
    FLAG_BITMAP_V2,
    FLAG_CONTINUE,
    FLAG_ENCRYPTED,
    FLAG_EOS,
    FLAG_MEM_SIZE,
    FLAG_PAGE,
    FLAG_ZERO,
    SUBTYPE_HELPER_PAGE,
    SUBTYPE_PAGE,
    SUBTYPE_STATUS,
    BitmapRange,
    BlockEntry,
    BlockList,
    EncryptedPage,
    EndOfSection,
    Format,
    HelperPage,
    PlainPage,
    Record,
    SharedRegions,
    StatusBitmap,
    ZeroPage,
    check_data,
    page_word,
)
from guestemu.host.userspace.qemu_v4_stream import save_regions

_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_BITMAP: Final = struct.Struct(">QQQ")
_WIDE_GFN: Final = 1 << 32
_NAME_MAX: Final = 255


def blob(data: bytes) -> bytes:
    """be32 length and the bytes."""
    return _U32.pack(len(data)) + data


class StreamWriter:
    """Writes records to a channel. `written` counts bytes. A method raises `InputError` for what
    the format cannot express, before anything is written, and what the channel raises.

    `wide_gfns`: a region list with a gfn of 2^32 or more is cut to 32 bits as posted (D22) if True,
    else refused.
    """

    def __init__(self, channel: Channel, wire: Format, *, wide_gfns: bool = False) -> None:
        self._channel = channel
        self._wire = wire
        self._wide_gfns = wide_gfns
        self._block: str | None = None

    def _put(self, data: bytes) -> None:
        self._channel.write(data)

    def _header(self, block: str, offset: int, flags: int) -> bytes:
        """The page header; the block's name only where the block changes."""
        if block == self._block:
            return _U64.pack(page_word(offset, flags | FLAG_CONTINUE))
        return _U64.pack(page_word(offset, flags)) + _name(block)

    def _page(self, block: str, offset: int, flags: int, body: bytes) -> None:
        self._put(self._header(block, offset, flags) + body)
        self._block = block

    def block_list(self, blocks: Sequence[tuple[str, int]]) -> None:
        """MEM_SIZE with (name, used length in bytes) of each block."""
        total = sum(length for _, length in blocks)
        if any(length & PAGE_MASK for _, length in blocks):
            raise InputError("block list: a length that is not whole pages; give page multiples")
        parts = [_U64.pack(total | FLAG_MEM_SIZE)]
        parts += [_name(name) + _U64.pack(length) for name, length in blocks]
        self._put(b"".join(parts))

    def zero_page(self, block: str, offset: int, fill: int = 0) -> None:
        """A page of one repeated byte."""
        self._page(block, offset, FLAG_ZERO, bytes([fill]))

    def plain_page(self, block: str, offset: int, data: bytes) -> None:
        """The 4096 raw bytes of a page."""
        self._page(block, offset, FLAG_PAGE, check_data(data))

    def encrypted_page(
        self, block: str, offset: int, packet: SevPacket, start: SendStart | None = None
    ) -> None:
        """A page through the firmware; `start` with the first one of a migration."""
        body = [] if self._wire is Format.FLAGS_2019_V2 else [_U32.pack(SUBTYPE_PAGE)]
        if start is not None:
            body += [_U32.pack(start.policy), blob(start.pdh), blob(start.session)]
        body += [blob(packet.header), blob(packet.data)]
        self._page(block, offset, FLAG_ENCRYPTED, b"".join(body))

    def helper_page(self, block: str, offset: int, packet: SevPacket) -> None:
        """A page that the migration helper encrypted (F17); not in the format of 2019 v2."""
        if self._wire is Format.FLAGS_2019_V2:
            raise InputError("helper page in a 2019-v2 stream: the format has no subtypes")
        body = _U32.pack(SUBTYPE_HELPER_PAGE) + blob(packet.header) + blob(packet.data)
        self._page(block, offset, FLAG_ENCRYPTED, body)

    def status_bitmap(self, ranges: Sequence[BitmapRange], block: str) -> None:
        """The page status at the end (D8b, D12). `block` is the block that the record's header
        names; 2019 v2 has none and writes a record of its own for each range."""
        if self._wire is Format.LIST:
            raise InputError("status bitmap in a 2021 stream: it carries a list of regions")
        body = [_BITMAP.pack(r.start, r.pages, len(r.bits)) + r.bits for r in ranges]
        if self._wire is Format.FLAGS_2019_V2:
            flag = _U64.pack(FLAG_BITMAP_V2)
            self._put(b"".join(flag + part for part in body))
            return
        parts = [_U32.pack(SUBTYPE_STATUS)]
        parts += [_U32.pack(BITMAP_CONTINUE) + part for part in body]
        self._page(block, 0, FLAG_ENCRYPTED, b"".join(parts) + _U32.pack(BITMAP_END))

    def shared_regions(self, regions: Sequence[Region], block: str) -> None:
        """The list of shared regions at the end (D22, D25)."""
        if self._wire is not Format.LIST:
            raise InputError("region list in a 2019 or 2020 stream: it carries a bitmap")
        if not self._wide_gfns and any(max(region) >= _WIDE_GFN for region in regions):
            raise InputError(
                "region list: a gfn of 2^32 or more does not fit the stream's be32; a guest with"
                " RAM above 16 TiB cannot be migrated in this format"
            )
        self._page(block, 0, FLAG_ENCRYPTED, _U32.pack(SUBTYPE_STATUS) + save_regions([*regions]))

    def end_of_section(self) -> None:
        """EOS."""
        self._put(_U64.pack(FLAG_EOS))


def write_record(writer: StreamWriter, record: Record, block: str = "pc.ram") -> None:
    """Writes what the reader read: the inverse of `stream_reader.read_stream`. `block` is named by
    the header of status records."""
    match record:
        case BlockList(blocks=blocks):
            writer.block_list([(entry.name, entry.length) for entry in blocks])
        case ZeroPage(block=name, offset=offset, fill=fill):
            writer.zero_page(name, offset, fill)
        case PlainPage(block=name, offset=offset, data=data):
            writer.plain_page(name, offset, data)
        case EncryptedPage(block=name, offset=offset, start=start, packet=packet):
            writer.encrypted_page(name, offset, packet, start)
        case HelperPage(block=name, offset=offset, packet=packet):
            writer.helper_page(name, offset, packet)
        case StatusBitmap(ranges=ranges):
            writer.status_bitmap(ranges, block)
        case SharedRegions(regions=regions):
            writer.shared_regions(regions, block)
        case EndOfSection():
            writer.end_of_section()


def entries(blocks: Sequence[tuple[str, int]]) -> tuple[BlockEntry, ...]:
    """(name, length) pairs as the records of a `BlockList`."""
    return tuple(BlockEntry(name, length) for name, length in blocks)


def _name(name: str) -> bytes:
    """Length byte and name; `InputError` for an empty name or one over 255 bytes."""
    raw = name.encode()
    if not 0 < len(raw) <= _NAME_MAX:
        raise InputError(f"block name of {len(raw)} bytes: must have 1 to {_NAME_MAX}")
    return bytes([len(raw)]) + raw
