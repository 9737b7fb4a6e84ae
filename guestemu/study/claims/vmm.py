# SPDX-License-Identifier: GPL-2.0-or-later
"""A small VMM in the middle of a migration, for claims about what can still stop it.

QEMU's migration code of August 2021 (docs/hosts.md) over a few shared pages: nothing goes through
the firmware, as the claims are about blockers and not about pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, RamAddr
from guestemu.abi.errno import EIO
from guestemu.host.qemu.blockers import MigrationBlockers
from guestemu.host.qemu.dirty_log import KvmDirtyLogs
from guestemu.host.qemu.interfaces import Region, SendStart, SevPacket, TransportError
from guestemu.host.qemu.memory_map import MemoryMap
from guestemu.host.qemu.outgoing import page_status
from guestemu.host.qemu.precopy import Precopy
from guestemu.host.qemu.sev_send import OutgoingSev

PATCH_SET: Final = "2021-v4"
PAGES: Final = 64

_CONTENT: Final = b"\x5a" * PAGE_SIZE


class _AllShared:
    """Every page is in the list of shared regions."""

    @property
    def regions(self) -> Sequence[Region]:
        return ((0, PAGES),)


class _Pages:
    """Guest memory without stores."""

    def read(self, address: RamAddr) -> bytes:
        return _CONTENT

    def write(self, address: RamAddr, data: bytes) -> None:
        raise TransportError("write at the source", -EIO)


class _NoFirmware:
    """No page is private, so no command is issued."""

    def send_start(self) -> SendStart:
        raise TransportError("SEND_START", -EIO)

    def send_update_data(self, address: RamAddr) -> SevPacket:
        raise TransportError("SEND_UPDATE_DATA", -EIO)

    def send_finish(self) -> None:
        raise TransportError("SEND_FINISH", -EIO)

    def send_cancel(self) -> None:
        raise TransportError("SEND_CANCEL", -EIO)


class _Channel:
    """Takes everything."""

    def write(self, data: bytes) -> object:
        return len(data)


def make_migration(blockers: MigrationBlockers) -> Precopy:
    """A migration that can be started."""
    machine = MemoryMap()
    machine.add_block("pc.ram", PAGES << PAGE_SHIFT)
    machine.map("pc.ram", 0)
    return Precopy(
        page_status(machine, PATCH_SET, regions=_AllShared()),
        KvmDirtyLogs(machine),
        _Pages(),
        OutgoingSev(_NoFirmware(), frozenset()),
        _Channel(),
        blockers=blockers,
    )
