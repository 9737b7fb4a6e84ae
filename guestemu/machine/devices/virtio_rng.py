# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-rng (virtio 1.1, section 5.4). Its bytes count up, so that runs are equal."""

from __future__ import annotations

from itertools import pairwise

from guestemu.machine.devices.pci import PciIds
from guestemu.machine.devices.virtio import VENDOR, QueueBuffer, VirtioFunction


class VirtioRng(VirtioFunction):
    """See the module's docstring. Appears as /dev/hwrng; the driver is the module virtio-rng."""

    IDS = PciIds(VENDOR, 0x1044, 0x00FF00, 1, (VENDOR, 0x44))
    MODULES = ("virtio-rng",)
    NODE = "/dev/hwrng"

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`: bytes count up, and each request begins with 0."""
        return bool(data) and all(
            later in {0, earlier + 1 & 0xFF} for earlier, later in pairwise(data)
        )

    def serve(self, number: int, chain: list[QueueBuffer]) -> int:
        """See `VirtioFunction`."""
        written = 0
        for buffer in chain:
            if buffer.is_writable:
                data = bytes(index & 0xFF for index in range(buffer.size))
                self.dma.write(buffer.gpa, data, "data", is_payload=True)
                written += buffer.size
        return written
