# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that does not convert pages by itself: KVM_EXIT_MEMORY_FAULT ends the VM (N16, T12)."""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.errno import EFAULT
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.machine.exits import MEMORY_FAULT, MapGpaRange


class StopAtFaultHost(MapGpaRangeHost):
    """As map-gpa-range; a guest under SNP or TDX that accesses a page by the view that the host did
    not make it is stopped, where QEMU converts the page and loses what it held."""

    name: ClassVar[str] = "stop-at-fault"
    summary: ClassVar[str] = (
        "as map-gpa-range; KVM_EXIT_MEMORY_FAULT of an SNP guest or TD stops the VM"
    )

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `MergedHost`."""
        return EFAULT if call.origin == MEMORY_FAULT else super().map_gpa_range(call)
