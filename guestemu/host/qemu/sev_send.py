# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own SEV state of an outgoing migration: when SEND_START is issued, what a failure does.

Source: D12, D16: sev_save_outgoing_page(), sev_migration_state_notifier() of May 2020. Of the other
sets nothing is recorded about failure; they cancel here.
"""

from __future__ import annotations

import enum

from guestemu.abi.addresses import RamAddr
from guestemu.host.kvm.findings import FindingKind, FindingLog, ResourceFinding
from guestemu.host.qemu.interfaces import SendStart, SevPacket, SevSource, TransportError
from guestemu.host.qemu.patch_sets import QemuDefect


class SevState(enum.Enum):
    """QEMU's variable, which need not be what the firmware says."""

    RUNNING = "running"
    SEND_UPDATE = "send-update"


class OutgoingSev:
    """One VM's; lives through several attempts to migrate, which is where D16 shows."""

    def __init__(self, sev: SevSource, defects: frozenset[QemuDefect]) -> None:
        self._sev = sev
        self._defects = defects
        self._log = FindingLog()
        self._has_freed_header = False
        self.state = SevState.RUNNING
        self.last_error: TransportError | None = None
        """The last failure of SEND_FINISH or SEND_CANCEL, which QEMU only reports."""

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """Uses of the freed header buffer."""
        return self._log.found

    def save_page(self, address: RamAddr) -> tuple[SevPacket, SendStart | None]:
        """sev_save_outgoing_page(): with SEND_START before the first page (lazily, D16)."""
        start = None
        if self.state is SevState.RUNNING:
            start = self._sev.send_start()
            self.state = SevState.SEND_UPDATE
        if self._has_freed_header:
            message = "the packet header of a new attempt goes to the freed buffer of the last one"
            self._log.add(FindingKind.USE_AFTER_FREE, 52, message, "D16, M52")
        return self._sev.send_update_data(address), start

    def completed(self) -> None:
        """The migration completed: SEND_FINISH, if SEND_START ever was; `TransportError`."""
        if self.state is SevState.SEND_UPDATE:
            self._sev.send_finish()
            self._release()

    def failed(self, *, is_cancelled: bool) -> None:
        """The migration failed or was cancelled: SEND_CANCEL, if SEND_START ever was.

        As posted in 2020 a failure gets SEND_FINISH: the firmware's guest is SENT, never RUNNING
        again, while QEMU says running. The outcome of either command changes nothing here.
        """
        if self.state is not SevState.SEND_UPDATE:
            return
        try:
            if QemuDefect.FINISH_ON_FAILURE in self._defects and not is_cancelled:
                self._sev.send_finish()
            else:
                self._sev.send_cancel()
        except TransportError as error:
            self.last_error = error
        self._release()

    def _release(self) -> None:
        self.state = SevState.RUNNING
        self._has_freed_header = QemuDefect.DANGLING_HEADER in self._defects
