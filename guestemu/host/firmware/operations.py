# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's SEV ioctls as operations of a program, on a host that has a modelled firmware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from guestemu.abi.errno import ENOTTY
from guestemu.host.base import Host

if TYPE_CHECKING:
    from guestemu.host.firmware.world import SevWorld


@runtime_checkable
class HasSevWorld(Protocol):
    """A host with a security processor and VMs on it."""

    def sev_world(self) -> SevWorld:
        """The VMs and the firmware as they are now."""


def sev_ioctl(host: Host, vm: int, command: int, size: int, offset: int, size2: int) -> int:
    """KVM_MEMORY_ENCRYPT_OP; see `SevWorld.ioctl`. -ENOTTY on a host without a firmware."""
    if not isinstance(host, HasSevWorld):
        return -ENOTTY
    return host.sev_world().ioctl(vm, command, size, offset, size2)


def sev_region(host: Host, vm: int, offset: int, size: int, unregister: int) -> int:
    """KVM_MEMORY_ENCRYPT_REG_REGION or _UNREG_REGION; see `SevWorld.region`. -ENOTTY on a host
    without a firmware."""
    if not isinstance(host, HasSevWorld):
        return -ENOTTY
    return host.sev_world().region(vm, offset, size, bool(unregister))
