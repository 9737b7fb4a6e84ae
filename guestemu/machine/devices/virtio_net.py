# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-net (virtio 1.1, section 5.1) with one queue pair and no offloads.

The other end of the wire answers frames of the experimental type 0x88B5: sender and receiver change
places, and each byte of the payload is inverted, so that an answer shows that the data went both
ways. All other frames are lost.
"""

from __future__ import annotations

import struct
from typing import Final

from guestemu.machine.devices.pci import PciIds
from guestemu.machine.devices.virtio import VENDOR, QueueBuffer, VirtioFunction

_RECEIVE, _TRANSMIT = 0, 1
_MAC_GIVEN: Final = 1 << 5
_HAS_STATUS: Final = 1 << 16
_LINK_UP: Final = 1
_MAC: Final = bytes.fromhex("52540067656d")
_PEER: Final = bytes.fromhex("525400706572")
_HEADER: Final = 12  # struct virtio_net_hdr_mrg_rxbuf
_ETHERNET: Final = 14
_TYPE: Final = b"\x88\xb5"
_SHORTEST, _LONGEST = 60, 1514
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
        return _MAC + struct.pack("<H", _LINK_UP)

    def read_command(self, size: int, offset: int) -> str:
        """See `PciFunction`: a frame of `size` bytes, and its answer."""
        return f"frame {self.NODE} {min(max(size, _SHORTEST), _LONGEST)}"

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`: `data` is the answer to a frame of PID 1."""
        sent = bytes(0xA0 + (at & 15) for at in range(len(data) - _ETHERNET))
        return len(data) >= _SHORTEST and data == _answer(b"\xff" * 6 + _MAC + _TYPE + sent)

    def is_ready(self, number: int) -> bool:
        """See `VirtioFunction`: a receive buffer is used when a frame has come."""
        return number != _RECEIVE or bool(self.state.pending)

    def serve(self, number: int, chain: list[QueueBuffer]) -> int:
        """See `VirtioFunction`."""
        if number == _RECEIVE:
            return self._receive(chain)
        sent = b"".join(
            self.dma.read(buffer.gpa, min(buffer.size, _HEADER + _LONGEST), "frame", True)
            for buffer in chain
            if not buffer.is_writable
        )[_HEADER:]
        is_ours = sent[_ETHERNET - len(_TYPE) : _ETHERNET] == _TYPE
        if is_ours and len(self.state.pending) < _MAX_PENDING:
            self.state.pending.append(_answer(sent))
            self.kick(_RECEIVE)
        return 0

    def _receive(self, chain: list[QueueBuffer]) -> int:
        data = bytes(_HEADER - 2) + b"\x01\x00" + self.state.pending.pop(0)  # one buffer
        return self.fill(chain, data, "frame")


def _answer(sent: bytes) -> bytes:
    """What the other end makes of a frame."""
    payload = bytes(byte ^ 0xFF for byte in sent[_ETHERNET:])
    return sent[6:12] + _PEER + _TYPE + payload
