# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a migrating QEMU as operations of a program, on a host that has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from guestemu.abi.errno import ENOTTY
from guestemu.host.base import Host

if TYPE_CHECKING:
    from guestemu.host.qemu.world import QemuWorld


@runtime_checkable
class HasQemuWorld(Protocol):
    """A host with a migrating QEMU."""

    def qemu_world(self) -> QemuWorld:
        """QEMU as it is now."""


def qemu_status(host: Host, section: int, page: int, pages: int, private: int) -> int:
    """See `QemuWorld.set_status`; -ENOTTY on another host, as for all of these."""
    if not isinstance(host, HasQemuWorld):
        return -ENOTTY
    return host.qemu_world().set_status(section, page, pages, private)


def qemu_sync(host: Host) -> int:
    """See `QemuWorld.sync`."""
    return host.qemu_world().sync() if isinstance(host, HasQemuWorld) else -ENOTTY


def qemu_resize(host: Host, block: int) -> int:
    """See `QemuWorld.resize`."""
    return host.qemu_world().resize(block) if isinstance(host, HasQemuWorld) else -ENOTTY


def qemu_handover(host: Host) -> int:
    """See `QemuWorld.handover`."""
    return host.qemu_world().handover() if isinstance(host, HasQemuWorld) else -ENOTTY


def qemu_reset(host: Host) -> int:
    """See `QemuWorld.reset`."""
    return host.qemu_world().reset() if isinstance(host, HasQemuWorld) else -ENOTTY


def qemu_send(host: Host, step: int) -> int:
    """See `QemuWorld.send`."""
    return host.qemu_world().send(step) if isinstance(host, HasQemuWorld) else -ENOTTY


def qemu_record(host: Host, kind: int, first: int, second: int, third: int, filler: int) -> int:
    """See `QemuWorld.feed`."""
    if not isinstance(host, HasQemuWorld):
        return -ENOTTY
    return host.qemu_world().feed(kind, first, second, third, filler)
