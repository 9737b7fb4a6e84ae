# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-console (virtio 1.1, section 5.3) with one port.

The other end sends numbered lines of 64 bytes, one for each buffer that the driver gives it, and
takes what the guest writes (with a terminal that echoes, its own lines).
"""

from __future__ import annotations

import re
from typing import Final

from guestemu.machine.devices.pci import PciIds
from guestemu.machine.devices.virtio import VENDOR, QueueBuffer, VirtioFunction

_RECEIVE: Final = 0
_LINE: Final = 64
_NUMBER: Final = re.compile(rb"guestemu console line (\d{8}) ")


class VirtioConsole(VirtioFunction):
    """See the module's docstring. Appears as /dev/hvc0; the driver is built into cloud kernels from
    6.12 on, a module in 6.1."""

    IDS = PciIds(VENDOR, 0x1043, 0x078000, 1, (VENDOR, 0x43))
    OPTIONAL_MODULES = ("virtio_console",)
    NODE = "/dev/hvc0"
    QUEUES = 2

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`: lines whose numbers count up. A terminal that is opened again begins
        within a line."""
        found = _NUMBER.search(data)
        if found is None:
            return False
        head, body, first = data[: found.start()], data[found.start() :], int(found[1])
        lines = b"".join(_line(first + at) for at in range(-(-len(body) // _LINE)))
        return _line(first - 1).endswith(head) and lines.startswith(body)

    def serve(self, number: int, chain: list[QueueBuffer]) -> int:
        """See `VirtioFunction`."""
        if number != _RECEIVE:
            for buffer in chain:
                self.dma.read(buffer.gpa, buffer.size, "output", is_payload=True)
            return 0
        data = _line(self.state.lines)
        self.state.lines += 1
        return self.fill(chain, data, "input")


def _line(number: int) -> bytes:
    return (b"guestemu console line %08d " % number).ljust(_LINE - 1, b".") + b"\n"
