# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-blk (virtio 1.1, section 5.2): read, write, flush, get ID; several queues with MSI-X."""

from __future__ import annotations

import struct
from typing import Final

from guestemu.machine.devices.disk import SECTOR, Disk
from guestemu.machine.devices.pci import PciIds
from guestemu.machine.devices.virtio import VENDOR, QueueBuffer, VirtioFunction

_IN, _OUT, _FLUSH, _GET_ID = 0, 1, 4, 8
_OK, _IOERR, _UNSUPPORTED = b"\0", b"\1", b"\2"
_HEADER: Final = 16


class VirtioBlk(VirtioFunction):
    """See the module's docstring. Appears as /dev/vda; the driver is the module virtio_blk."""

    IDS = PciIds(VENDOR, 0x1042, 0x010000, 1, (VENDOR, 0x42))
    MODULES = ("virtio_blk",)
    NODE = "/dev/vda"
    MORE_FEATURES = 1 << 12  # VIRTIO_BLK_F_MQ
    MORE_QUEUES = 7

    def medium(self) -> Disk:
        """See `VirtioFunction`."""
        return Disk("virtio sector")

    @property
    def disk(self) -> Disk:
        """The medium."""
        return self.state.disk or self.medium()

    @property
    def own_config(self) -> bytes:
        """The start of struct virtio_blk_config: the capacity in sectors, the number of queues."""
        return struct.pack("<Q26xH", self.disk.sectors, self.queues)

    def holds(self, data: bytes, offset: int = 0) -> bool:
        """See `PciFunction`."""
        return self.disk.has(data, offset)

    def serve(self, number: int, chain: list[QueueBuffer]) -> int:
        """See `VirtioFunction`."""
        if len(chain) < 2 or chain[0].size < _HEADER:
            return 0
        header = self.dma.read(chain[0].gpa, _HEADER, "header", is_payload=True)
        kind, _, sector = struct.unpack("<IIQ", header)
        status, written = self._transfer(kind, sector, chain[1:-1])
        self.dma.write(chain[-1].gpa, status, "status", is_payload=True)
        return written + 1

    def _transfer(self, kind: int, sector: int, data: list[QueueBuffer]) -> tuple[bytes, int]:
        """Status and the number of bytes written into the buffers."""
        if kind == _FLUSH:
            return _OK, 0
        if kind not in {_IN, _OUT, _GET_ID}:
            return _UNSUPPORTED, 0
        written = 0
        for buffer in data:
            if kind == _GET_ID:
                content = b"guestemu".ljust(buffer.size, b"\0")[: buffer.size]
                self.dma.write(buffer.gpa, content, "data", is_payload=True)
                written += buffer.size
                continue
            count = buffer.size // SECTOR
            if not self.disk.holds(sector, count) or buffer.is_writable != (kind == _IN):
                return _IOERR, written
            if kind == _IN:
                content = self.disk.read(sector, count)
                self.dma.write(buffer.gpa, content, "data", is_payload=True)
                written += buffer.size
            else:
                content = self.dma.read(buffer.gpa, count * SECTOR, "data", is_payload=True)
                self.disk.write(sector, content)
            sector += count
        return _OK, written
