# SPDX-License-Identifier: GPL-2.0-or-later
"""Which hosts have the SEV firmware's ioctls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from guestemu.host.firmware.world import SevWorld


@runtime_checkable
class HasSevWorld(Protocol):
    """A host with a security processor and VMs on it."""

    def sev_world(self) -> SevWorld:
        """The VMs and the firmware as they are now."""
