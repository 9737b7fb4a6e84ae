# SPDX-License-Identifier: GPL-2.0-or-later
"""Which hosts have a migrating QEMU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from guestemu.host.qemu.world import QemuWorld


@runtime_checkable
class HasQemuWorld(Protocol):
    """A host with a migrating QEMU."""

    def qemu_world(self) -> QemuWorld:
        """QEMU as it is now."""
