# SPDX-License-Identifier: GPL-2.0-or-later
"""The default host: merged KVM under the reference user space."""

from __future__ import annotations

from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.msrs import KVM_MIGRATION_READY
from guestemu.host.kvm.host import MergedHost
from guestemu.host.userspace.base import UserSpace
from guestemu.host.userspace.injection import Injection
from guestemu.host.userspace.reference import ReferenceUserSpace


class MapGpaRangeHost(MergedHost):
    """KVM_HC_MAP_GPA_RANGE as an exit to user space that keeps a bitmap by gfn (K3-a)."""

    name: ClassVar[str] = "map-gpa-range"
    summary: ClassVar[str] = (
        "merged ABI since Linux 5.14: KVM_HC_MAP_GPA_RANGE exits to a user space with a bitmap"
    )

    contract_state: ClassVar[bool] = True

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """The reference user space."""
        self._reference = ReferenceUserSpace(frames)
        return self._reference, self._reference.injection

    def private_map(self) -> bitarray:
        """The reference user space's bitmap itself; valid until the next reset."""
        return self._reference.private

    @property
    def migration_ready(self) -> bool:
        """Bit 0 of the MIGRATION_CONTROL latch."""
        return bool(self._reference.migration_control & KVM_MIGRATION_READY)
