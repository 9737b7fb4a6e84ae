# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration thread of the source, in steps small enough to put guest steps between any two.

A pass is the patch set's order of steps: the dirty log into the migration bitmap, its clear, the
copy of the status, then one page after another. `step` does the next of them. The driver
decides when the guest stops (`stop`); the same steps run once more, then `complete`. Source:
migration/ram.c (ram_save_setup, ram_save_iterate, ram_save_complete), D3, D12, D16, D17, D31, D32.

Why methods and not a thread: every interleaving must be reproducible. Why one page a step: the
status of the page and the guest's writes race exactly there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, RamAddr
from guestemu.abi.errors import GuestemuError, InputError
from guestemu.host.qemu.blockers import MigrationBlockers
from guestemu.host.qemu.convergence import Throughput, threshold_pages
from guestemu.host.qemu.dirty_log import KvmDirtyLogs
from guestemu.host.qemu.interfaces import Channel, ChannelError, GuestPages, TransportError
from guestemu.host.qemu.memory_map import RamBlock
from guestemu.host.qemu.migration_bitmap import MigrationBitmap
from guestemu.host.qemu.patch_sets import Order, QemuDefect, StepKind
from guestemu.host.qemu.sev_send import OutgoingSev
from guestemu.host.qemu.status import PageStatus, UnmappedPage
from guestemu.host.qemu.stream_format import StatusBitmap
from guestemu.host.qemu.stream_writer import StreamWriter

_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class Phase(enum.Enum):
    """QEMU's migration status."""

    NONE = "none"
    ACTIVE = "active"
    DEVICE = "device"
    """The guest is stopped."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class SentPage(msgspec.Struct, frozen=True):
    """A page as it was sent: page index in the block, whether through the firmware."""

    block: str
    page: int
    is_private: bool


class PrecopyStep(msgspec.Struct, frozen=True):
    """What `Precopy.step` did. `page` with the sending steps; None there: no page was left.
    `ends_pass`: the next step begins a new pass."""

    kind: StepKind
    page: SentPage | None = None
    ends_pass: bool = False


class Counters(msgspec.Struct):
    """Pages sent so far by sort, and passes completed."""

    encrypted: int = 0
    plain: int = 0
    zero: int = 0
    passes: int = 0


class Precopy:
    """One attempt to migrate a VM.

    `resends_changed`: before completion, pages whose status differs from the one they were last
    sent with are sent again (Singh's repair, C6). `chunk_pages`: with a manual-protect log and an
    order without C, so many pages are cleared right before the first of them is sent (D32; 1 GiB
    in QEMU). Methods raise `InputError` in a phase they do not belong to. After a failure `phase`
    is FAILED and `failure` says why; nothing is raised for it.
    """

    def __init__(
        self,
        status: PageStatus,
        logs: KvmDirtyLogs,
        pages: GuestPages,
        sev: OutgoingSev,
        channel: Channel,
        *,
        blockers: MigrationBlockers | None = None,
        order: Order | None = None,
        resends_changed: bool = False,
        chunk_pages: int = 1 << 18,
    ) -> None:
        self._status = status
        self._machine = status.machine
        self._pages = pages
        self._sev = sev
        self._order = order or status.version.order
        self._defects = status.defects
        self._bitmap = MigrationBitmap(self._machine, logs, chunk_pages)
        is_auto = StepKind.FETCH in self._order
        if is_auto == logs.is_manual:
            needed = "an auto-clear" if is_auto else "a manual-protect"
            raise InputError(f"the order of steps needs {needed} dirty log; make the logs that way")
        self._clears_lazily = not is_auto and StepKind.CLEAR not in self._order
        self._writer = StreamWriter(
            channel, status.version.wire, wide_gfns=QemuDefect.LIST_WIDTH in self._defects
        )
        self._blockers = blockers or MigrationBlockers()
        self._resends_changed = resends_changed
        self._next = 0
        self._is_drained = False
        self._sent_private: dict[str, bitarray] = {}
        self.phase = Phase.NONE
        self.failure: GuestemuError | None = None
        self.swallowed: GuestemuError | None = None
        """An error of the last page loop that was overwritten (D12): the migration completes, and
        pages are missing at the destination."""
        self.counters = Counters()

    @property
    def pending_pages(self) -> int:
        """Pages in the migration bitmap."""
        return self._bitmap.count

    def fits_downtime(self, throughput: Throughput | None = None, limit_ms: int = 0) -> bool:
        """Whether what is pending, all of it private, can be sent within the downtime limit
        (0: the patch set's), D14. To be asked at the end of a pass."""
        rate = (throughput or Throughput()).encrypted_pages
        limit = limit_ms or self._status.version.downtime_ms
        return self.pending_pages <= threshold_pages(rate, limit)

    def start(self) -> None:
        """ram_save_setup(): blockers, all pages dirty, the block list. `MigrationBlocked`."""
        self._require(Phase.NONE)
        self._blockers.check()
        self._blockers.is_running = True
        self.phase = Phase.ACTIVE
        self._bitmap.set_all()
        for name, block in self._machine.blocks.items():
            self._sent_private[name] = bitarray(block.pages, endian="little")
        self._guard(self._send_setup)

    def _send_setup(self) -> None:
        blocks = self._machine.blocks.values()
        self._writer.block_list([(block.name, block.size) for block in blocks])
        self._writer.end_of_section()

    def step(self) -> PrecopyStep:
        """The next step of the pass. In the pass after `stop`, once drained, does nothing more."""
        self._require(Phase.ACTIVE, Phase.DEVICE)
        kind = self._order[self._next]
        if kind in (StepKind.SEND, StepKind.SEND_LIVE):
            return self._send_step(kind)
        if kind is StepKind.STATUS:
            self._status.sync()
        elif kind is StepKind.CLEAR:
            self._bitmap.clear_log()
        else:
            self._bitmap.sync_log()
        self._next += 1
        return PrecopyStep(kind)

    def _send_step(self, kind: StepKind) -> PrecopyStep:
        sent: SentPage | None = None
        if not self._is_drained:
            sent = self._guarded_page(kind is StepKind.SEND_LIVE)
        if self.pending_pages and not self._is_drained and self.phase is not Phase.FAILED:
            return PrecopyStep(kind, sent)
        if self.phase is Phase.ACTIVE:
            self._next = 0
            self.counters.passes += 1
            self._guard(self._writer.end_of_section)
        else:
            self._is_drained = True
        return PrecopyStep(kind, sent, ends_pass=True)

    def run_pass(self) -> int:
        """Steps to the end of the pass; the number of pages sent."""
        pages = 0
        while self.phase in (Phase.ACTIVE, Phase.DEVICE):
            step = self.step()
            pages += step.page is not None
            if step.ends_pass:
                break
        return pages

    def _guarded_page(self, is_live: bool) -> SentPage | None:
        """One page. An error fails the migration, or as posted (D12) only ends the last loop."""
        sent: list[SentPage] = []

        def send() -> None:
            page = self._bitmap.take()
            if page is not None:
                if self._clears_lazily:
                    self._bitmap.clear_chunk(*page)
                sent.append(self._send_page(*page, is_live))

        if self.phase is Phase.DEVICE and QemuDefect.RETURN_OVERWRITTEN in self._defects:
            try:
                send()
            except (TransportError, UnmappedPage) as error:
                self.swallowed = error
                self._is_drained = True
            except (ChannelError, InputError) as error:
                self._fail(error)
        else:
            self._guard(send)
        return sent[0] if sent else None

    def _send_page(self, block: RamBlock, page: int, is_live: bool) -> SentPage:
        """ram_save_page(): encrypted, zero or plain."""
        address = RamAddr(block.ram_addr + (page << PAGE_SHIFT))
        offset = page << PAGE_SHIFT
        is_private = self._status.is_private(block, page, live=is_live)
        if is_private:
            packet, start = self._sev.save_page(address)
            self._writer.encrypted_page(block.name, offset, packet, start)
            self.counters.encrypted += 1
        else:
            data = self._pages.read(address)
            if data == _ZERO_PAGE:
                self._writer.zero_page(block.name, offset)
                self.counters.zero += 1
            else:
                self._writer.plain_page(block.name, offset, data)
                self.counters.plain += 1
        self._sent_private[block.name][page] = is_private
        return SentPage(block.name, page, is_private)

    def stop(self) -> None:
        """The caller has stopped the guest: the last pass begins (D17)."""
        self._require(Phase.ACTIVE)
        self.phase = Phase.DEVICE
        self._next = 0

    def complete(self) -> None:
        """ram_save_complete() and the state notifier: what is left of the last pass, the status
        record, SEND_FINISH."""
        self._require(Phase.DEVICE)
        while self.phase is Phase.DEVICE and not self._is_drained:
            self.step()
        if self.phase is Phase.DEVICE:
            self._guard(self._send_end)
        if self.phase is Phase.DEVICE:
            self.phase = Phase.COMPLETED
            self._blockers.is_running = False

    def _send_end(self) -> None:
        if self._resends_changed:
            self._resend_changed()
        record = self._status.final_record()
        block = next(iter(self._machine.blocks))
        if isinstance(record, StatusBitmap):
            self._writer.status_bitmap(record.ranges, block)
        else:
            self._writer.shared_regions(record.regions, block)
        self._writer.end_of_section()
        self._sev.completed()

    def _resend_changed(self) -> None:
        for block in self._machine.blocks.values():
            for page in range(block.pages):
                now = self._status.is_private(block, page, live=True)
                if now != self._sent_private[block.name][page]:
                    self._send_page(block, page, is_live=True)

    def cancel(self) -> None:
        """migrate_cancel: the guest goes on at the source."""
        self._require(Phase.ACTIVE, Phase.DEVICE)
        self._sev.failed(is_cancelled=True)
        self._end(Phase.CANCELLED)

    def fail(self, reason: str) -> None:
        """The migration fails for a reason from outside."""
        self._require(Phase.ACTIVE, Phase.DEVICE)
        self._fail(GuestemuError(reason))

    def _fail(self, error: GuestemuError) -> None:
        self.failure = error
        self._sev.failed(is_cancelled=False)
        self._end(Phase.FAILED)

    def _end(self, phase: Phase) -> None:
        self.phase = phase
        self._blockers.is_running = False

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (TransportError, ChannelError, UnmappedPage, InputError) as error:
            self._fail(error)

    def _require(self, *phases: Phase) -> None:
        if self.phase not in phases:
            allowed = " or ".join(phase.value for phase in phases)
            raise InputError(f"migration is {self.phase.value}: this needs it {allowed}")
