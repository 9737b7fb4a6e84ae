# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination: applies a stream to RAM blocks, and always says how far it got.

A destination that fails after the first page holds a guest in parts. It never starts then; `report`
says what was overwritten. As posted nothing looks at whether the page status ever came; repaired,
`finish` refuses without it. Source: migration/ram.c ram_load(), sev_load_incoming_page(), D8b, D12,
D15, D22, D25.
"""

from __future__ import annotations

import enum
from typing import BinaryIO

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, RamAddr
from guestemu.abi.errors import GuestemuError, InputError
from guestemu.host.kvm.findings import ResourceFinding
from guestemu.host.qemu.interfaces import (
    GuestPages,
    Region,
    SevDestination,
    StatusSink,
    TransportError,
)
from guestemu.host.qemu.memory_map import MemoryMap
from guestemu.host.qemu.patch_sets import PatchSet, QemuDefect
from guestemu.host.qemu.stream_format import (
    BlockList,
    EncryptedPage,
    HelperPage,
    PlainPage,
    Record,
    SharedRegions,
    StatusBitmap,
    ZeroPage,
)
from guestemu.host.qemu.stream_reader import StreamLimits, StreamReader
from guestemu.host.qemu.wire import StreamError


class IncomingState(enum.Enum):
    """How far the destination is."""

    WAITING = "waiting"
    """No record yet."""
    SETUP = "setup"
    """The block list matched; RAM is untouched."""
    ACTIVE = "active"
    """Pages were written."""
    COMPLETED = "completed"
    """All came; the guest may start."""
    FAILED = "failed"
    """Refused or broken; the guest must not start."""


class IncomingFailed(GuestemuError):
    """The destination failed; `cause` is why. The message says what of RAM was overwritten."""

    def __init__(self, report: str, cause: GuestemuError) -> None:
        super().__init__(f"{cause} ({report})")
        self.cause = cause


class Incoming:
    """One incoming migration into the blocks of `machine`.

    `page_bits` in the stream are 12. `regions` are what the machine's list of shared regions held
    before (2021): as posted the incoming list is appended to it (D22). A page of the migration
    helper (subtype 4) is refused: there is none here.
    """

    def __init__(
        self,
        machine: MemoryMap,
        version: PatchSet,
        defects: frozenset[QemuDefect],
        pages: GuestPages,
        sev: SevDestination,
        sink: StatusSink,
        regions: tuple[Region, ...] = (),
    ) -> None:
        self._machine = machine
        self._defects = defects
        self._pages = pages
        self._sev = sev
        self._sink = sink
        self._regions = regions
        limits = StreamLimits(
            {name: block.size for name, block in machine.blocks.items()}, machine.top_gfn
        )
        self._reader = StreamReader(
            version.wire, limits, is_repaired=QemuDefect.UNCHECKED_WIRE not in defects
        )
        self._arrived = {
            name: bitarray(block.pages, endian="little") for name, block in machine.blocks.items()
        }
        self._has_session = False
        self.has_status = False
        """Whether the page status came."""
        self.state = IncomingState.WAITING

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """What believing the stream did to QEMU (as posted)."""
        return self._reader.findings

    @property
    def can_start(self) -> bool:
        """Whether the guest may run here."""
        return self.state is IncomingState.COMPLETED

    def report(self) -> str:
        """One line: the state, and what of RAM was overwritten."""
        pages = {name: bits.count() for name, bits in self._arrived.items()}
        touched = ", ".join(f"{count} pages of {name}" for name, count in pages.items() if count)
        rest = "the guest may start" if self.can_start else "the guest must not start"
        return f"destination {self.state.value}: {touched or 'no page'} overwritten; {rest}"

    def load(self, data: bytes | BinaryIO) -> None:
        """Applies the records of `data`, which are whole; may be called again with the next ones.

        `IncomingFailed` for a bad stream, a refused packet or `InputError` of a sink; from then on
        the state is FAILED for ever.
        """
        self._require_open()
        try:
            for record in self._reader.read(data):
                self._apply(record)
        except (StreamError, TransportError, InputError) as error:
            raise self._failed(error) from error

    def abort(self, reason: str) -> IncomingFailed:
        """The connection is gone: FAILED. Returns the error for the caller to raise or show."""
        self._require_open()
        return self._failed(GuestemuError(reason))

    def finish(self) -> None:
        """The source said that it is done: RECEIVE_FINISH if there was a session; COMPLETED.

        `IncomingFailed` if RAM never came, if the firmware refuses, and in the repaired form if
        the page status is missing.
        """
        self._require_open()
        if self.state is not IncomingState.ACTIVE:
            raise self._failed(GuestemuError("the stream ended before the first page"))
        if not self.has_status and QemuDefect.UNCHECKED_WIRE not in self._defects:
            raise self._failed(GuestemuError("the stream ended without the page status"))
        try:
            if self._has_session:
                self._sev.receive_finish()
        except TransportError as error:
            raise self._failed(error) from error
        self.state = IncomingState.COMPLETED

    def _failed(self, error: GuestemuError) -> IncomingFailed:
        self.state = IncomingState.FAILED
        return IncomingFailed(self.report(), error)

    def _require_open(self) -> None:
        if self.state in (IncomingState.COMPLETED, IncomingState.FAILED):
            raise InputError(f"{self.report()}; make a new destination")

    def _apply(self, record: Record) -> None:
        match record:
            case BlockList():
                if self.state is IncomingState.WAITING:
                    self.state = IncomingState.SETUP
            case PlainPage(block=block, offset=offset, data=data):
                self._pages.write(self._place(block, offset), data)
            case ZeroPage(block=block, offset=offset, fill=fill):
                self._pages.write(self._place(block, offset), bytes([fill]) * PAGE_SIZE)
            case EncryptedPage():
                self._encrypted(record)
            case StatusBitmap():
                self._bitmap(record)
            case SharedRegions(regions=regions):
                keeps = QemuDefect.LIST_LOAD in self._defects
                self._regions = (*self._regions, *regions) if keeps else regions
                self._sink.set_shared_regions(self._regions)
                self.has_status = True
            case HelperPage(block=block, offset=offset):
                raise InputError(
                    f"page {offset:#x} of block {block!r} is for a migration helper, which this"
                    " destination has not; migrate without one"
                )

    def _encrypted(self, record: EncryptedPage) -> None:
        if record.start is not None:
            self._sev.receive_start(record.start)
            self._has_session = True
        place = self._place(record.block, record.offset)
        self._sev.receive_update_data(record.packet, place)

    def _bitmap(self, record: StatusBitmap) -> None:
        for one in record.ranges:
            self._sink.set_page_enc_bitmap(Gfn(one.start >> PAGE_SHIFT), one.pages, one.bits)
        self.has_status = True

    def _place(self, block: str, offset: int) -> RamAddr:
        """Where the page belongs; from now on RAM counts as touched, there and then."""
        if self.state is IncomingState.WAITING:
            raise InputError(f"a page of block {block!r} before the block list; send that first")
        self.state = IncomingState.ACTIVE
        self._arrived[block][offset >> PAGE_SHIFT] = True
        return RamAddr(self._machine.blocks[block].ram_addr + offset)
