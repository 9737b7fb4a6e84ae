# SPDX-License-Identifier: GPL-2.0-or-later
"""A host of your own, with a bug: a range that ends with a 64-bit word loses its last page."""

import msgspec

from guestemu.host.base import Hypercall
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost


class MyHost(MapGpaRangeHost):
    """The reference host but for one line; to start from nothing, derive from host.base.Host."""

    def hypercall(self, call: Hypercall) -> int:
        """Drops the last page of ranges that end at a multiple of 64 frames."""
        if call.nr == 12 and call.a1 > 1 and ((call.a0 >> 12) + call.a1) % 64 == 0:
            call = msgspec.structs.replace(call, a1=call.a1 - 1)
        return super().hypercall(call)
