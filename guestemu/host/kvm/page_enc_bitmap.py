# SPDX-License-Identifier: GPL-2.0-or-later
"""The bitmap generations' record: `page_enc_bmap`, one bit for each gfn, 1 = encrypted (K1-b).

The modelled kernel allocates a bit for every gfn below the highest one named; this model keeps a
bit for each frame of RAM and the cleared gfns beyond RAM as intervals, so a guest cannot make our
process grow by naming high addresses. Allocations of the modelled kernel are only counted.
"""

from __future__ import annotations

from bitarray import bitarray

from guestemu.host.intervals import IntervalSet
from guestemu.host.kvm.findings import HOST_MEMORY, HOST_MEMORY_BOUND, FindingKind, FindingLog


def bitmap_bytes(bits: int) -> int:
    """Bytes of a kernel bitmap of `bits` bits: ALIGN(bits, 64) / 8."""
    return (bits + 63) // 64 * 8


class PageEncBitmap:
    """The kernel's bitmap for a VM with `frames` frames of RAM.

    `size` is `page_enc_bmap_size`, in bits; a gfn at or above it counts as encrypted. `ram` has
    one bit for each frame and can be handed out as a host's private map.
    """

    __slots__ = ("_beyond", "_frames", "_log", "ram", "size")

    def __init__(self, frames: int, log: FindingLog) -> None:
        self._frames = frames
        self._log = log
        self.size = 0
        self.ram = bitarray(frames, endian="little")
        self.ram.setall(True)
        self._beyond = IntervalSet()

    def resize(self, bits: int) -> bool:
        """Grows to `bits` bits, never shrinks (K1-f); new bits are 1. False: vmalloc failed.

        More than `HOST_MEMORY_BOUND` is a finding, more than the host has RAM is refused.
        """
        if bits <= self.size:
            return True
        size = bitmap_bytes(bits)
        if size > HOST_MEMORY:
            return False
        if size > HOST_MEMORY_BOUND:
            message = f"guest made its host allocate a bitmap of {size} bytes for {bits} pages"
            self._log.add(FindingKind.HOST_MEMORY, size, message, "K1-f, M34")
        self.size = bits
        return True

    def write(self, start: int, end: int, private: bool) -> None:
        """Sets or clears the bits [start, end); the caller has made sure that they exist."""
        frames = self._frames
        if start < frames:
            self.ram[start : min(end, frames)] = private
        if end > frames:
            first = max(start, frames)
            if private:
                self._beyond.remove(first, end)
            else:
                self._beyond.add(first, end)

    def read(self, start: int, pages: int) -> bitarray:
        """The bits [start, start + pages); 1 beyond `size`, where nothing was written."""
        end = start + pages
        ram_end = min(end, self._frames)
        bits = self.ram[start:ram_end] if start < ram_end else bitarray(endian="little")
        bits.extend(bitarray([True]) * (pages - len(bits)))
        for first, last in self._beyond.within(start, end):
            bits[first - start : last - start] = False
        return bits

    def forget(self) -> None:
        """Every page encrypted again; the size stays."""
        self.ram.setall(True)
        self._beyond = IntervalSet()
