# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-net (virtio 1.1, section 5.1) with one queue pair and no offloads; the other end is
far_end.py."""

from __future__ import annotations

import struct
from typing import Final

from guestemu.machine.devices import far_end
from guestemu.machine.devices.pci import PciIds
from guestemu.machine.devices.virtio import VENDOR, QueueBuffer, VirtioFunction

_RECEIVE, _TRANSMIT = 0, 1
_MAC_GIVEN: Final = 1 << 5
_HAS_STATUS: Final = 1 << 16
_LINK_UP: Final = 1
_HEADER: Final = 12  # struct virtio_net_hdr_mrg_rxbuf
_MAX_PENDING: Final = 16


class VirtioNet(VirtioFunction):
    """See the module's docstring. Appears as eth0; the driver is the module virtio_net."""

    IDS = PciIds(VENDOR, 0x1041, 0x020000, 1, (VENDOR, 0x41))
    MODULES = ("failover", "net_failover", "virtio_net")
    NODE = "eth0"
    FEATURES = _MAC_GIVEN | _HAS_STATUS
    QUEUES = 2

    @property
    def own_config(self) -> bytes:
        """The start of struct virtio_net_config: address, status."""
        return far_end.OWN + struct.pack("<H", _LINK_UP)

    def read_command(self, size: int, offset: int) -> str:
        """See `PciFunction`: a frame of `size` bytes, and its answer."""
        return far_end.frame_command(self.NODE, size)

    def write_command(self, size: int, offset: int) -> str:
        """See `PciFunction`: a frame, as to read."""
        return self.read_command(size, offset)

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`: `data` is the answer to a frame of PID 1."""
        return far_end.is_answer(data)

    def is_ready(self, number: int) -> bool:
        """See `VirtioFunction`: a receive buffer is used when a frame has come."""
        return number != _RECEIVE or bool(self.state.pending)

    def serve(self, number: int, chain: list[QueueBuffer]) -> int:
        """See `VirtioFunction`."""
        if number == _RECEIVE:
            return self._receive(chain)
        sent = b"".join(
            self.dma.read(buffer.gpa, min(buffer.size, _HEADER + far_end.LONGEST), "frame", True)
            for buffer in chain
            if not buffer.is_writable
        )[_HEADER:]
        answer = far_end.answer(sent)
        if answer is not None and len(self.state.pending) < _MAX_PENDING:
            self.state.pending.append(answer)
            self.kick(_RECEIVE)
        return 0

    def _receive(self, chain: list[QueueBuffer]) -> int:
        data = bytes(_HEADER - 2) + b"\x01\x00" + self.state.pending.pop(0)  # one buffer
        return self.fill(chain, data, "frame")
