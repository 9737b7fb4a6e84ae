# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM's SEV code needs of memory management: user mappings with pinning, and kmalloc.

An anonymous page that was never written is the shared zero page until something pins it for write
or user space stores to it. kmalloc gives back what was freed last, with its old content: without
zeroing, a caller sees bytes of earlier users.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from guestemu.host.firmware.memory import PhysicalMemory

KMALLOC_MAX: Final = 4 << 20
"""The largest kmalloc in bytes, KMALLOC_MAX_SIZE on x86-64."""


class UserFault(Exception):
    """A host virtual address is not mapped, or not writable: -EFAULT of a copy."""


class FrameAllocator:
    """Gives out host frames, contiguous, from `first` up; the space of one size is used again."""

    def __init__(self, first: int, end: int) -> None:
        self._next = first
        self._end = end
        self._free: dict[int, list[int]] = {}

    def allocate(self, pages: int) -> int | None:
        """The system-physical address of `pages` contiguous pages, or None: out of memory."""
        free = self._free.get(pages)
        if free:
            return free.pop()
        if self._next + pages > self._end:
            return None
        frame = self._next
        self._next += pages
        return frame << PAGE_SHIFT

    def release(self, address: int, pages: int) -> None:
        """Frees what `allocate` returned."""
        self._free.setdefault(pages, []).append(address)


class KernelHeap:
    """kmalloc and kzalloc, in whole pages (the model has no smaller unit)."""

    def __init__(self, memory: PhysicalMemory, frames: FrameAllocator) -> None:
        self._memory = memory
        self._frames = frames

    def allocate(self, size: int, zero: bool = True) -> int | None:
        """A buffer of `size` bytes by system-physical address, or None above `KMALLOC_MAX`."""
        if size > KMALLOC_MAX:
            return None
        pages = size + PAGE_MASK >> PAGE_SHIFT
        address = self._frames.allocate(pages)
        if zero and address is not None:
            self._memory.write(address, bytes(size))
        return address

    def release(self, address: int, size: int) -> None:
        """Frees a buffer of `size` bytes; the content stays."""
        self._frames.release(address, size + PAGE_MASK >> PAGE_SHIFT)


class UserMemory:
    """One process: host virtual pages to host frames."""

    def __init__(self, memory: PhysicalMemory, frames: FrameAllocator) -> None:
        self._memory = memory
        self._frames = frames
        self._pages: dict[int, int] = {}
        self._untouched: set[int] = set()
        self._read_only: set[int] = set()
        zero = frames.allocate(1)
        assert zero is not None, "a host has memory for its zero page"
        self.zero_page = zero

    def map(self, hva: int, address: int, pages: int, writable: bool = True) -> None:
        """Maps `pages` pages of memory at the system-physical `address` to page-aligned `hva`."""
        for index in range(pages):
            page = (hva >> PAGE_SHIFT) + index
            self._pages[page] = address + index * PAGE_SIZE
            self._untouched.discard(page)
            if not writable:
                self._read_only.add(page)

    def map_anonymous(self, hva: int, pages: int) -> None:
        """Maps private anonymous memory: each page is the zero page until it is written."""
        first = hva >> PAGE_SHIFT
        for page in range(first, first + pages):
            self._pages[page] = self.zero_page
            self._untouched.add(page)

    def pin(self, hva: int, write: bool) -> int:
        """The system-physical address of the page at `hva`, as pin_user_pages gives it; for write
        an untouched page gets a frame of its own. `UserFault` where there is none."""
        page = hva >> PAGE_SHIFT
        if page not in self._pages or (write and page in self._read_only):
            raise UserFault(f"{hva:#x} is not mapped" if page not in self._pages else "read-only")
        if write and page in self._untouched:
            frame = self._frames.allocate(1)
            if frame is None:
                raise UserFault("out of memory")
            self._memory.write(frame, bytes(PAGE_SIZE))
            self._pages[page] = frame
            self._untouched.discard(page)
        return self._pages[page]

    def read(self, hva: int, size: int) -> bytes:
        """copy_from_user: `size` bytes at `hva`, or `UserFault`."""
        return b"".join(
            self._memory.read(self.pin(start, False) + (start & PAGE_MASK), length)
            for start, length in _pieces(hva, size)
        )

    def write(self, hva: int, data: bytes) -> None:
        """copy_to_user, or `UserFault`; pages before the bad one are written."""
        for start, length in _pieces(hva, len(data)):
            address = self.pin(start, True) + (start & PAGE_MASK)
            self._memory.write(address, data[start - hva : start - hva + length])


def _pieces(start: int, size: int) -> list[tuple[int, int]]:
    pieces = []
    end = start + size
    while start < end:
        length = min(PAGE_SIZE - (start & PAGE_MASK), end - start)
        pieces.append((start, length))
        start += length
    return pieces
