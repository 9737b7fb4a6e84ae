# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the RAM part of a migration stream: ram_load(), sev_load_incoming_page() and the status.

Two readers in one: repaired, every number of the wire is held to a limit before it is used, as
Gilbert asked in review (12 July 2019, D8b); as posted, lengths and counts are believed, and what
that does to the destination is noted as a `ResourceFinding` instead of being done (M75).
What QEMU itself always tested (unknown flags and blocks, offsets beyond a block) both refuse.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.host.kvm.findings import (
    HOST_MEMORY_BOUND,
    FindingKind,
    FindingLog,
    ResourceFinding,
)
from guestemu.host.qemu.interfaces import SendStart, SevPacket
from guestemu.host.qemu.status_fields import StatusReader
from guestemu.host.qemu.stream_format import (
    FLAG_BITMAP_V2,
    FLAG_CONTINUE,
    FLAG_ENCRYPTED,
    FLAG_EOS,
    FLAG_MEM_SIZE,
    FLAG_PAGE,
    FLAG_ZERO,
    MAX_BLOB,
    SUBTYPE_HELPER_PAGE,
    SUBTYPE_PAGE,
    SUBTYPE_STATUS,
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
    split_word,
)
from guestemu.host.qemu.wire import QemuWire

_WITH_BLOCK: Final = FLAG_ZERO | FLAG_PAGE | FLAG_ENCRYPTED


class StreamLimits(msgspec.Struct, frozen=True):
    """What the destination is: its RAM blocks with their used lengths in bytes, and the number of
    gfns up to the top of RAM."""

    blocks: Mapping[str, int]
    top_gfn: int


class StreamReader:
    """Reads one migration's stream, in as many pieces as it comes; a piece holds whole records.

    `is_repaired` chooses the reader (see the module). `findings` has the harm of the as-posted one.
    `offset` counts the bytes read so far.
    """

    def __init__(
        self,
        wire_format: Format,
        limits: StreamLimits,
        *,
        is_repaired: bool = True,
        page_bits: int = PAGE_SHIFT,
    ) -> None:
        self._format = wire_format
        self._limits = limits
        self._page_bits = page_bits
        self._is_repaired = is_repaired
        self._log = FindingLog()
        self._status = StatusReader(limits.top_gfn, self._log, is_repaired=is_repaired)
        self._block: str | None = None
        self._has_started = False
        self.offset = 0

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """What believing the wire did, in order; empty for the repaired reader."""
        return self._log.found

    def read(self, source: bytes | BinaryIO) -> Iterator[Record]:
        """The records of `source`, to its end; raises `StreamError` at the first bad one.

        Reads as the records are asked for, so those before the bad one were given out.
        """
        wire = QemuWire(io.BytesIO(source) if isinstance(source, bytes) else source, self.offset)
        while not wire.at_end():
            record = self._record(wire)
            self.offset = wire.offset
            yield record

    def _record(self, wire: QemuWire) -> Record:
        address, flags = split_word(wire.u64("page header"), self._page_bits)
        kind = flags & ~FLAG_CONTINUE
        if kind & _WITH_BLOCK and kind & _WITH_BLOCK == kind:
            block = self._select_block(wire, flags, address)
            if kind == FLAG_ZERO:
                return ZeroPage(block, address, wire.u8("fill byte"))
            if kind == FLAG_PAGE:
                return PlainPage(block, address, wire.take(PAGE_SIZE, "page data"))
            if kind == FLAG_ENCRYPTED:
                return self._encrypted(wire, block, address)
        elif kind == FLAG_MEM_SIZE:
            return self._block_list(wire, address)
        elif kind == FLAG_EOS:
            return EndOfSection()
        elif kind == FLAG_BITMAP_V2 and self._format is Format.FLAGS_2019_V2:
            return StatusBitmap((self._status.bitmap_range(wire),))
        raise wire.refuse("flags", f"unknown combination {flags:#x}", flags, back=8)

    def _select_block(self, wire: QemuWire, flags: int, address: int) -> str:
        """ram_block_from_stream(): the named block, or the last one; the offset must be in it."""
        at = wire.offset - 8
        if not flags & FLAG_CONTINUE:
            name = wire.name("block name")
            if name not in self._limits.blocks:
                raise wire.refuse("block name", f"no RAM block {name!r} here", back=len(name))
            self._block = name
        if self._block is None:
            raise wire.refuse("flags", "CONTINUE, but no block was named before", flags, back=8)
        length = self._limits.blocks[self._block]
        if address + (1 << self._page_bits) > length:
            raise wire.refuse(
                "page offset",
                f"{address:#x} is beyond block {self._block!r} of {length:#x} bytes",
                address,
                length,
                back=wire.offset - at,
            )
        return self._block

    def _block_list(self, wire: QemuWire, total: int) -> BlockList:
        """MEM_SIZE: every block must be ours, once, with our length; their sum is the total."""
        found: list[BlockEntry] = []
        names: set[str] = set()
        left = total
        while left:
            name = wire.name("block list name")
            length = wire.u64(f"length of block {name!r}")
            own = self._limits.blocks.get(name)
            if own is None or name in names:
                problem = "is listed twice" if name in names else "is not here"
                raise wire.refuse("block list", f"RAM block {name!r} {problem}", length, back=8)
            if length != own or length > left:
                limit = min(own, left)
                reason = f"{length:#x} bytes, here {own:#x}, {left:#x} of the total left"
                raise wire.refuse(f"length of block {name!r}", reason, length, limit, back=8)
            names.add(name)
            found.append(BlockEntry(name, length))
            left -= length
        return BlockList(total, tuple(found))

    def _encrypted(self, wire: QemuWire, block: str, offset: int) -> Record:
        subtype = SUBTYPE_PAGE
        if self._format is not Format.FLAGS_2019_V2:
            subtype = wire.u32("subtype")
        if subtype == SUBTYPE_PAGE:
            start = None if self._has_started else self._send_start(wire)
            packet = self._packet(wire)
            self._has_started = True
            return EncryptedPage(block, offset, start, packet)
        if subtype == SUBTYPE_STATUS and self._format is Format.BITMAP:
            return StatusBitmap(self._status.bitmap_ranges(wire))
        if subtype == SUBTYPE_STATUS:
            return SharedRegions(self._status.regions(wire))
        if subtype == SUBTYPE_HELPER_PAGE:
            return HelperPage(block, offset, self._packet(wire))
        raise wire.refuse("subtype", f"unknown subtype {subtype:#x}", subtype, back=4)

    def _send_start(self, wire: QemuWire) -> SendStart:
        policy = wire.u32("policy")
        return SendStart(policy, self._blob(wire, "PDH"), self._blob(wire, "session"))

    def _packet(self, wire: QemuWire) -> SevPacket:
        return SevPacket(self._blob(wire, "packet header"), self._blob(wire, "packet data"))

    def _blob(self, wire: QemuWire, field: str) -> bytes:
        """be32 length and bytes; 1 to `MAX_BLOB` if the wire is not believed."""
        length = wire.u32(f"{field} length")
        if length > MAX_BLOB or not length:
            if self._is_repaired:
                reason = f"{length} bytes, must be 1 to {MAX_BLOB}"
                raise wire.refuse(f"{field} length", reason, length, MAX_BLOB, back=4)
            message = f"the stream made QEMU allocate {length} bytes for the {field}"
            self._log.add(FindingKind.HOST_MEMORY, length, message, "D8b, M75")
        if length > HOST_MEMORY_BOUND:
            reason = f"QEMU waits for {length} bytes that the stream promised"
            raise wire.refuse(f"{field} length", reason, length, HOST_MEMORY_BOUND, back=4)
        return wire.take(length, field)
