# SPDX-License-Identifier: GPL-2.0-or-later
"""The default host with a security processor: the target of `guestemu fuzz firmware`.

The firmware's modules are imported when it is asked for: they bring a library of cryptography.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import msgspec

from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.program.ops import SEV_SPECS, Op, OpKind

if TYPE_CHECKING:
    from guestemu.host.firmware.checkpoint import Checkpoint
    from guestemu.host.firmware.world import SevWorld


class SevFirmwareHost(MapGpaRangeHost):
    """`map-gpa-range` plus the SEV firmware and KVM's ioctls over it (Linux 7.1), with three VMs of
    its own (see `SevWorld`). They are made when a program first asks for them."""

    name: ClassVar[str] = "sev-firmware"
    summary: ClassVar[str] = (
        "map-gpa-range with the SEV firmware, driven by sev_ioctl and sev_region"
    )

    def reset(self, frames: int) -> None:
        """See `Host`."""
        self._sev: SevWorld | None = None
        self._first: Checkpoint | None = None
        super().reset(frames)

    def restore(self, frames: int) -> None:
        """See `Host`; the VMs become what they were before the first operation."""
        if self._sev is not None and self._sev.is_touched and self._first is not None:
            self._first.restore()
        super().restore(frames)

    def make_world(self) -> SevWorld:
        """The VMs of a new host."""
        from guestemu.host.firmware.world import SevWorld

        return SevWorld()

    def sev_world(self) -> SevWorld:
        """See `HasSevWorld`."""
        if self._sev is None:
            from guestemu.host.firmware.checkpoint import Checkpoint
            from guestemu.host.firmware.world import make_offer

            self._sev = self.make_world()
            self._sev.take_offer(make_offer())
            self._first = Checkpoint(self._sev)
        return self._sev

    def operations(self) -> Mapping[OpKind, Callable[..., int]]:
        """See `Host`; the firmware's are `SevWorld.ioctl` and `SevWorld.region`."""
        return {
            **super().operations(),
            OpKind.SEV_IOCTL: lambda *args: self.sev_world().ioctl(*args),
            OpKind.SEV_REGION: lambda *args: self.sev_world().region(*args),
        }

    @property
    def state(self) -> int:
        """That of the base, and the firmware guests' states once an operation was about them:
        whether an earlier program made them must not show."""
        world = self._sev
        return super().state | (world.state if world is not None and world.is_touched else 0) << 8

    def plain(self, op: Op) -> Op:
        """See `Host`."""
        if op.kind not in SEV_SPECS:
            return super().plain(op)
        from guestemu.host.firmware.world import plain_arguments

        return msgspec.structs.replace(op, arguments=plain_arguments(op.kind, op.arguments))
