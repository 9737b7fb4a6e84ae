# SPDX-License-Identifier: GPL-2.0-or-later
"""System-physical memory as the firmware sees it: DRAM bytes, and the keys of the ASIDs.

The firmware works on DRAM. `KeySlots` is its way through the memory controller: it decrypts with an
ASID's key on reading and encrypts on writing, so the bytes in DRAM depend on the key and on the
address (facts E29 to E31). `HostMemory` is one host's DRAM; the RAM of an emulated guest is
attached to it with `GuestDram`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Protocol

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.machine.cache import CachedRam
from guestemu.machine.cipher import PageCipher
from guestemu.machine.memory import GuestRam

_ZEROS: Final = bytes(PAGE_SIZE)
_KEPT_CIPHERS: Final = 64


class BadAddress(Exception):
    """There is no DRAM at a system-physical address."""


class PhysicalMemory(Protocol):
    """DRAM by system-physical address, in bytes. A range may cross pages; `BadAddress` where a part
    of it is not memory, before anything is written."""

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes that DRAM holds at `address`."""

    def write(self, address: int, data: bytes) -> None:
        """Puts `data` into DRAM at `address`."""

    def read_dram(self, address: int, size: int) -> bytes:
        """As `read`, past the CPU's cache: what the firmware finds with the C-bit (E32)."""

    def write_dram(self, address: int, data: bytes) -> None:
        """As `write`, past the CPU's cache."""

    def flush(self, address: int, size: int, private: bool = False) -> None:
        """CLFLUSH of a range by the alias with that C-bit."""

    def write_back_all(self) -> None:
        """WBINVD on all cores."""


class PlacedCipher(PageCipher):
    """The cipher of a guest whose frame 0 is at system frame `base`: the tweak is made from the
    system-physical address (E31)."""

    def __init__(self, key: bytes, base: int) -> None:
        super().__init__(key)
        self._base = base

    def encrypt(self, gfn: Gfn, plain: bytes | memoryview) -> bytes:
        """See `PageCipher`; `gfn` is the guest's."""
        return super().encrypt(Gfn(gfn + self._base), plain)

    def decrypt(self, gfn: Gfn, dram: bytes | memoryview) -> bytes:
        """See `PageCipher`; `gfn` is the guest's."""
        return super().decrypt(Gfn(gfn + self._base), dram)


@lru_cache(maxsize=_KEPT_CIPHERS)
def placed_cipher(key: bytes, base: int) -> PlacedCipher:
    """The cipher of a guest with this key at this place; see `_cipher`."""
    return PlacedCipher(key, base)


class GuestDram:
    """The DRAM behind a `GuestRam`, by offset. Mirrored low frames count as private memory: their
    DRAM bytes are the cipher's image of what the guest reads."""

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self.size = ram.frames * PAGE_SIZE

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes within one page."""
        ram = self._ram
        gfn = offset >> PAGE_SHIFT
        if gfn >= ram.low:
            return ram.read(Gpa(offset), size, private=False)
        page = ram.cipher.encrypt(Gfn(gfn), ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE))
        return page[offset & PAGE_MASK :][:size]

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes within one page."""
        ram = self._ram
        gfn = offset >> PAGE_SHIFT
        if gfn >= ram.low:
            ram.write(Gpa(offset), data, private=False)
            return
        start = gfn << PAGE_SHIFT
        page = bytearray(ram.cipher.encrypt(Gfn(gfn), ram.read(Gpa(start), PAGE_SIZE)))
        page[offset - start : offset - start + len(data)] = data
        ram.write(Gpa(start), ram.cipher.decrypt(Gfn(gfn), bytes(page)))

    def read_dram(self, offset: int, size: int) -> bytes:
        """As `read`, past the cache."""
        ram = self._ram
        if isinstance(ram, CachedRam) and offset >> PAGE_SHIFT >= ram.low:
            return ram.read_dram(Gpa(offset), size)
        return self.read(offset, size)

    def write_dram(self, offset: int, data: bytes) -> None:
        """As `write`, past the cache."""
        ram = self._ram
        if isinstance(ram, CachedRam) and offset >> PAGE_SHIFT >= ram.low:
            ram.write_dram(Gpa(offset), data)
        else:
            self.write(offset, data)

    def flush(self, offset: int, size: int, private: bool) -> None:
        """CLFLUSH by one alias; without a cache nothing."""
        if isinstance(self._ram, CachedRam):
            self._ram.flush_lines(Gpa(offset), size, private)

    def write_back_all(self) -> None:
        """WBINVD."""
        if isinstance(self._ram, CachedRam):
            self._ram.write_back_all()


class HostMemory:
    """One host's DRAM: `size` bytes from address 0, zero at first and kept page by page, with the
    RAM of emulated guests attached in place of some of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pages: dict[int, bytearray] = {}
        self._attached: list[tuple[int, int, GuestDram]] = []

    def attach(self, base: int, ram: GuestRam, key: bytes) -> None:
        """`ram` is the memory at the page-aligned address `base`, encrypted under the 16-byte `key`
        (`Platform.memory_key`). Private content is kept as plaintext; a page whose current view is
        DRAM reads as garbage through the new key, as on hardware."""
        ram.cipher = placed_cipher(key, base >> PAGE_SHIFT)
        dram = GuestDram(ram)
        self._attached.append((base, base + dram.size, dram))

    def read(self, address: int, size: int) -> bytes:
        """See `PhysicalMemory`."""
        self._check(address, size)
        if (address & PAGE_MASK) + size <= PAGE_SIZE:
            return self._read_piece(address, size)
        return b"".join(self._read_piece(start, length) for start, length in _pieces(address, size))

    def write(self, address: int, data: bytes) -> None:
        """See `PhysicalMemory`."""
        self._check(address, len(data))
        for start, length in _pieces(address, len(data)):
            self._write_piece(start, data[start - address : start - address + length])

    def read_dram(self, address: int, size: int) -> bytes:
        """See `PhysicalMemory`. Only attached RAM has caches."""
        self._check(address, size)
        return b"".join(
            dram.read_dram(start - base, length) if dram else self._read_piece(start, length)
            for start, length, base, dram in self._placed(address, size)
        )

    def write_dram(self, address: int, data: bytes) -> None:
        """See `PhysicalMemory`."""
        self._check(address, len(data))
        for start, length, base, dram in self._placed(address, len(data)):
            piece = data[start - address : start - address + length]
            if dram:
                dram.write_dram(start - base, piece)
            else:
                self._write_piece(start, piece)

    def flush(self, address: int, size: int, private: bool = False) -> None:
        """See `PhysicalMemory`."""
        for start, length, base, dram in self._placed(address, size):
            if dram:
                dram.flush(start - base, length, private)

    def write_back_all(self) -> None:
        """See `PhysicalMemory`."""
        for _base, _end, dram in self._attached:
            dram.write_back_all()

    def _placed(self, address: int, size: int) -> Iterator[tuple[int, int, int, GuestDram | None]]:
        """The range page by page: (address, bytes, base and DRAM of the attached RAM there)."""
        for start, length in _pieces(address, size):
            for base, end, dram in self._attached:
                if base <= start < end:
                    yield start, length, base, dram
                    break
            else:
                yield start, length, 0, None

    def _check(self, address: int, size: int) -> None:
        if address < 0 or address + size > self.size:
            raise BadAddress(f"{address:#x}+{size:#x} is beyond DRAM, which ends at {self.size:#x}")

    def _read_piece(self, address: int, size: int) -> bytes:
        for base, end, dram in self._attached:
            if base <= address < end:
                return dram.read(address - base, size)
        offset = address & PAGE_MASK
        return bytes(self._pages.get(address >> PAGE_SHIFT, _ZEROS)[offset : offset + size])

    def _write_piece(self, address: int, data: bytes) -> None:
        for base, end, dram in self._attached:
            if base <= address < end:
                dram.write(address - base, data)
                return
        page = self._pages.setdefault(address >> PAGE_SHIFT, bytearray(PAGE_SIZE))
        offset = address & PAGE_MASK
        page[offset : offset + len(data)] = data


def _pieces(address: int, size: int) -> list[tuple[int, int]]:
    """The range cut at page boundaries: (address, size)."""
    pieces = []
    end = address + size
    while address < end:
        length = min(PAGE_SIZE - (address & PAGE_MASK), end - address)
        pieces.append((address, length))
        address += length
    return pieces


@lru_cache(maxsize=_KEPT_CIPHERS)
def _cipher(key: bytes) -> PageCipher:
    """The cipher of a key: making one costs as much as using it for a hundred pages, and programs
    that start from the same state have the same keys."""
    return PageCipher(key)


class KeySlots:
    """The memory controller: a key for each ASID, and encrypted access with it.

    Addresses are multiples of 16 and sizes of 16-byte blocks; the C-bit is not part of them.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self._ciphers: dict[int, PageCipher] = {}

    def install(self, asid: int, key: bytes) -> None:
        """Puts the 16-byte `key` into the slot of `asid`."""
        self._ciphers[asid] = _cipher(key)

    def read(self, asid: int, address: int, size: int) -> bytes:
        """The plaintext of `size` bytes of DRAM under the key of `asid`."""
        cipher = self._ciphers[asid]
        first = address & ~PAGE_MASK
        last = address + size + PAGE_MASK & ~PAGE_MASK
        dram = self.memory.read_dram(address, size)
        if first != address or last != address + size:
            dram = bytes(address - first) + dram + bytes(last - address - size)
        gfn = first >> PAGE_SHIFT
        plain = b"".join(
            cipher.decrypt(Gfn(gfn + index), dram[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            for index in range(len(dram) // PAGE_SIZE)
        )
        return plain[address - first : address - first + size]

    def write(self, asid: int, address: int, plain: bytes) -> None:
        """Stores `plain` under the key of `asid`."""
        cipher = self._ciphers[asid]
        first = address & ~PAGE_MASK
        size = len(plain)
        last = address + size + PAGE_MASK & ~PAGE_MASK
        padded = bytes(address - first) + plain + bytes(last - address - size)
        gfn = first >> PAGE_SHIFT
        dram = b"".join(
            cipher.encrypt(Gfn(gfn + index), padded[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            for index in range(len(padded) // PAGE_SIZE)
        )
        self.memory.write_dram(address, dram[address - first : address - first + size])
