# SPDX-License-Identifier: GPL-2.0-or-later
"""The medium behind a block device: a known pattern, and the sectors written since."""

from __future__ import annotations

from typing import Final

import msgspec

SECTOR: Final = 512


class Disk(msgspec.Struct):
    """`sectors` of 512 bytes. Sector N of a disk labelled NAME repeats the line "NAME N"."""

    label: str
    sectors: int = 2048
    written: dict[int, bytes] = msgspec.field(default_factory=dict)

    def _sector(self, number: int) -> bytes:
        found = self.written.get(number)
        if found is not None:
            return found
        line = f"{self.label} {number:08d}\n".encode()
        return (line * (SECTOR // len(line) + 1))[:SECTOR]

    def has(self, data: bytes, offset: int = 0) -> bool:
        """Whether the disk has `data`, which is not empty, from byte `offset` on."""
        first, end = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
        content = self.read(first, end - first)
        return bool(data) and content.startswith(data, offset % SECTOR)

    def holds(self, first: int, count: int) -> bool:
        """Whether the disk has these sectors."""
        return first >= 0 and first + count <= self.sectors

    def read(self, first: int, count: int) -> bytes:
        """The content of `count` sectors."""
        return b"".join(self._sector(number) for number in range(first, first + count))

    def write(self, first: int, data: bytes) -> None:
        """New content, whole sectors."""
        for index in range(len(data) // SECTOR):
            self.written[first + index] = data[index * SECTOR : (index + 1) * SECTOR]
