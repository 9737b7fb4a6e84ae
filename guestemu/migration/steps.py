# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a migration pass on a live guest, one by one, as the order model has them (G.2).

A host fetches the dirty log into a snapshot (with or without clearing it), clears the log of the
pages in the snapshot, copies the status of all pages, and sends the pages of the snapshot, each by
the copied status or by the status as it is now. The order of these steps is the host's: they are
methods here and the caller decides. `guestemu.migration.model.order_model` has the same rules on
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bitarray import bitarray

from guestemu.abi.addresses import Gfn
from guestemu.host.base import Host
from guestemu.machine.memory import GuestRam
from guestemu.migration.dirty_log import DirtyLog
from guestemu.migration.links import Packet, Sender


class PassSteps:
    """The steps over `frames`, all of which start dirty. `deliver` takes each packet."""

    def __init__(
        self,
        ram: GuestRam,
        host: Host,
        sender: Sender,
        frames: Iterable[int],
        deliver: Callable[[Packet], None],
    ) -> None:
        self._log = DirtyLog(ram, frames)
        self._host = host
        self._sender = sender
        self._deliver = deliver
        self._snapshot: set[int] = set()
        self._status = host.private_map().copy()
        self._status.setall(True)

    def fetch(self, clear: bool) -> int:
        """The dirty log into the snapshot (added to what is there); with `clear` out of the log.
        The number of pages in the snapshot (KVM_GET_DIRTY_LOG, D30)."""
        found = self._log.get()
        self._snapshot |= found
        if clear:
            self._log.clear(found)
        return len(self._snapshot)

    def clear(self) -> int:
        """Clears the log of the pages in the snapshot; their number (KVM_CLEAR_DIRTY_LOG, D30)."""
        self._log.clear(self._snapshot)
        return len(self._snapshot)

    def copy_status(self) -> int:
        """Copies the host's record; the number of shared frames in it. Before the first copy every
        page counts as private."""
        self._status = self._host.private_map().copy()
        return self._status.count(0)

    def send(self, live: bool) -> int:
        """Sends the pages of the snapshot and empties it, by the copied status or (`live`) by the
        record as it is now; their number."""
        status: bitarray = self._host.private_map() if live else self._status
        pages = sorted(self._snapshot)
        for gfn in pages:
            self._deliver(self._sender.send(Gfn(gfn), bool(status[gfn])))
        self._snapshot.clear()
        return len(pages)
