# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM behind a cache whose lines are tagged with the C-bit (fact E32).

The C-bit is an address bit, so a CPU without coherent encryption caches the two aliases of a
physical line separately. A load is answered by the line of its own alias, or fills it from DRAM; a
store makes that line dirty; DRAM and the other alias learn of it when the line is written back.
Written back late, a dirty line overwrites what the other alias has put into DRAM since (M67, M19).

The two buffers of `GuestRam` are the data of the lines here, a third one per page is DRAM. A page
is handled this way from its first access after the checkpoint on, every access to it passes the
Python hook, and all lines start outside of the cache. The cache has no size: what is not flushed
stays, as far as `CacheModel.EVICTING` does not throw it out. Not cached: mirrored frames and page
tables, which the CPU's own walk reads without a hook; both have one alias only.

Other than in `GuestRam`, `read` and `write` are accesses of a CPU by that alias (a host's own
mapping is the alias with C=0) and leave lines behind. `peek` looks without a trace, `read_dram` and
`write_dram` are the firmware's: they see and replace the lines with C=1, and no others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.machine.cipher import PageCipher
from guestemu.machine.engine import Engine
from guestemu.machine.memory import GuestRam
from guestemu.machine.memory_watch import (
    FLAG_APART,
    FLAG_STALE,
    FLAG_TABLE,
    FLAG_WATCHED,
)
from guestemu.machine.view_bit import ViewBit

LINE_SHIFT: Final = 6
LINE_SIZE: Final = 1 << LINE_SHIFT
"""Bytes of a cache line."""

LINES: Final = PAGE_SIZE // LINE_SIZE
_ALL: Final = (1 << LINES) - 1
_GROUP: Final = 0xFF
_EVICTION_CHANCE: Final = 1 / 16
"""How likely an access throws out eight lines side by side, where lines are evicted at random.
Pages with lines of both aliases come first: nothing is to be seen on others."""


class _Page:
    """The lines of one page, a bit each; index 0 is the alias with C=0, index 1 with C=1.

    `present` are in the cache, `dirty` besides not yet in DRAM; the buffer of an alias holds the
    image of DRAM where `fresh`; `private_last` tells which alias was written last.
    """

    __slots__ = ("dirty", "dram", "fresh", "present", "private_last")

    def __init__(self, dram: bytes) -> None:
        self.dram = bytearray(dram)
        self.present = [0, 0]
        self.dirty = [0, 0]
        self.fresh = [_ALL, _ALL]
        self.private_last = 0


def line_mask(offset: int, size: int) -> int:
    """A bit for each line of a page that `size` bytes (not 0) at `offset` touch."""
    return (2 << (offset + size - 1 >> LINE_SHIFT)) - (1 << (offset >> LINE_SHIFT))


def _pieces(gpa: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The range page by page: (frame, offset in the page, bytes)."""
    end = gpa + size
    while gpa < end:
        offset = gpa & PAGE_MASK
        length = min(PAGE_SIZE - offset, end - gpa)
        yield gpa >> PAGE_SHIFT, offset, length
        gpa += length


class CachedRam(GuestRam):
    """`GuestRam` behind an incoherent cache; see the module's docstring. With `evicts` lines leave
    at random, decided by `seed`: the same after every rollback."""

    def __init__(
        self,
        engine: Engine,
        frames: int,
        bit: ViewBit,
        cipher: PageCipher,
        low: int = 0,
        evicts: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(engine, frames, bit, cipher, low)
        self._pages: dict[int, _Page] = {}
        self._evicts = evicts
        self._seed = seed
        self._random = random.Random(seed)

    # Accesses -----------------------------------------------------------------------------------

    def note_access(self, is_write: bool, address: int, size: int, value: int) -> None:
        """See `GuestRam`; the lines instead of the whole page."""
        gfn = (address & ~self.cbit_mask) >> PAGE_SHIFT
        if gfn >= self.frames:
            return
        is_private = bool(address & self.cbit_mask)
        offset = address & PAGE_MASK
        if self._evicts and self._random.random() < _EVICTION_CHANCE:
            self._evict_some()
        beyond = offset + size - PAGE_SIZE
        if beyond > 0:
            self.has_crossing |= is_write
            size -= beyond
            if gfn + 1 < self.frames:
                self._access(is_write, gfn + 1, is_private, 0, beyond)
        self._access(is_write, gfn, is_private, offset, size)
        if is_write and self.flags[self._index(gfn, is_private)] & FLAG_TABLE:
            self._log_table_write(address, value & 0xFFFF_FFFF_FFFF_FFFF)

    def _index(self, gfn: int, is_private: bool) -> int:
        return self.frames + gfn if is_private else gfn

    def _access(self, is_write: bool, gfn: int, is_private: bool, offset: int, size: int) -> None:
        index = self._index(gfn, is_private)
        if not self.flags[index] & FLAG_WATCHED:
            self._touch(is_write, gfn, is_private)
            return
        page = self._cached(gfn)
        lines = line_mask(offset, size)
        missing = lines & ~page.present[is_private]
        if missing:
            self._fill(gfn, page, is_private, missing)
            page.present[is_private] |= missing
        if is_write:
            page.dirty[is_private] |= lines
            page.fresh[is_private] &= ~lines
            page.private_last = (
                page.private_last | lines if is_private else page.private_last & ~lines
            )
            self._mark_dirty(index)

    def _cached(self, gfn: int) -> _Page:
        page = self._pages.get(gfn)
        if page is None:
            for is_private in (False, True):
                self._touch(False, gfn, is_private)
                self._mark_dirty(self._index(gfn, is_private))
            start = gfn << PAGE_SHIFT
            page = self._pages[gfn] = _Page(bytes(self.shared[start : start + PAGE_SIZE]))
        return page

    def _fill(self, gfn: int, page: _Page, is_private: bool, lines: int) -> None:
        """The buffer of one alias shows DRAM's `lines`."""
        old = lines & ~page.fresh[is_private]
        if old:
            dram = bytes(page.dram)
            image = self.cipher.decrypt(Gfn(gfn), dram) if is_private else dram
            _copy_lines(self._view(gfn, is_private), image, old)
            page.fresh[is_private] |= old

    def _view(self, gfn: int, is_private: bool) -> memoryview:
        return self._page(self._index(gfn, is_private))

    # Write-back ---------------------------------------------------------------------------------

    def _write_back(self, gfn: int, page: _Page, is_private: bool, lines: int) -> int:
        """Dirty ones of `lines` go to DRAM; all of them leave the cache. The number of dirty."""
        dirty = page.dirty[is_private] & lines
        page.present[is_private] &= ~lines
        if not dirty:
            return 0
        data = bytes(self._view(gfn, is_private))
        _copy_lines(page.dram, self.cipher.encrypt(Gfn(gfn), data) if is_private else data, dirty)
        page.dirty[is_private] &= ~dirty
        page.fresh[is_private] |= dirty
        page.fresh[not is_private] &= ~dirty
        return dirty.bit_count()

    def flush_lines(self, gpa: Gpa, size: int, private: bool) -> int:
        """CLFLUSH of `size` bytes by one alias, or their eviction: the lines written back."""
        count = 0
        for gfn, offset, length in _pieces(gpa, size):
            page = self._pages.get(gfn)
            if page is not None:
                count += self._write_back(gfn, page, private, line_mask(offset, length))
        return count

    def flush_line(self, gpa: int, private: bool) -> None:
        """CLFLUSH of the line at `gpa`, a multiple of `LINE_SIZE`."""
        page = self._pages.get(gpa >> PAGE_SHIFT)
        if page is not None:
            line = 1 << ((gpa & PAGE_MASK) >> LINE_SHIFT)
            self._write_back(gpa >> PAGE_SHIFT, page, private, line)

    def write_back_all(self) -> None:
        """WBINVD. Where both aliases of a line are dirty the older one goes last: hardware has no
        order, this is the worst."""
        for gfn, page in self._pages.items():
            both = page.dirty[0] & page.dirty[1]
            older = (both & page.private_last, both & ~page.private_last)
            for is_private in (False, True):
                self._write_back(gfn, page, is_private, _ALL & ~older[is_private])
            for is_private in (False, True):
                self._write_back(gfn, page, is_private, _ALL)

    def _evict_some(self) -> None:
        if not self._pages:
            return
        draw = self._random.getrandbits
        frames = [gfn for gfn, page in self._pages.items() if all(page.present)]
        frames = frames or list(self._pages)
        gfn = frames[draw(32) % len(frames)]
        lines = _GROUP << 8 * draw(3)
        self._write_back(gfn, self._pages[gfn], bool(draw(1)), lines)

    # Host side ----------------------------------------------------------------------------------

    def read(self, gpa: Gpa, size: int, private: bool = True) -> bytes:
        """A load by one alias: see `GuestRam`."""
        for gfn, offset, length in _pieces(gpa, size):
            self._access(False, gfn, private, offset, length)
        return self._shown(gpa, size, private)

    def write(self, gpa: Gpa, data: bytes, private: bool = True) -> None:
        """A store by one alias: see `GuestRam`."""
        for gfn, offset, length in _pieces(gpa, len(data)):
            self._access(True, gfn, private, offset, length)
        view = self.private if private or gpa < self.low * PAGE_SIZE else self.shared
        view[gpa : gpa + len(data)] = data

    def _shown(self, gpa: int, size: int, private: bool) -> bytes:
        view = self.private if private or gpa < self.low * PAGE_SIZE else self.shared
        return bytes(view[gpa : gpa + size])

    def peek(self, gpa: Gpa, size: int, private: bool) -> bytes:
        """What a load by one alias would give now; the cache stays as it is."""
        for gfn, offset, length in _pieces(gpa, size):
            page = self._pages.get(gfn)
            if page is None:
                self._touch(False, gfn, private)
            else:
                absent = line_mask(offset, length) & ~page.present[private]
                self._fill(gfn, page, private, absent)
        return self._shown(gpa, size, private)

    def read_dram(self, gpa: Gpa, size: int) -> bytes:
        """DRAM under the lines with C=1: what the firmware's access with the C-bit finds."""
        parts = []
        for gfn, offset, length in _pieces(gpa, size):
            page = self._pages.get(gfn)
            if page is None:
                parts.append(super().read(Gpa((gfn << PAGE_SHIFT) + offset), length, False))
                continue
            dram = bytearray(page.dram)
            if page.dirty[1]:
                data = self.cipher.encrypt(Gfn(gfn), bytes(self._view(gfn, True)))
                _copy_lines(dram, data, page.dirty[1])
            parts.append(bytes(dram[offset : offset + length]))
        return b"".join(parts)

    def write_dram(self, gpa: Gpa, data: bytes) -> None:
        """Stores DRAM bytes; the lines with C=1 go first, those with C=0 stay and are stale now."""
        done = 0
        for gfn, offset, length in _pieces(gpa, len(data)):
            piece = data[done : done + length]
            done += length
            if not self.flags[gfn] & FLAG_WATCHED:
                super().write(Gpa((gfn << PAGE_SHIFT) + offset), piece, False)
                continue
            page = self._cached(gfn)
            lines = line_mask(offset, length)
            self._write_back(gfn, page, True, lines)
            page.dram[offset : offset + length] = piece
            page.fresh = [fresh & ~lines for fresh in page.fresh]
            self._mark_dirty(self._index(gfn, False))

    # Checkpoint and rollback --------------------------------------------------------------------

    def checkpoint(self) -> None:
        """See `GuestRam`. Everything is written back first, and the cache is empty afterwards."""
        self.write_back_all()
        for gfn, page in self._pages.items():
            self._view(gfn, False)[:] = page.dram
            self.flags[self._index(gfn, True)] |= FLAG_STALE
            self._mark_dirty(gfn)
        self._pages.clear()
        for gfn in range(self.frames):
            both = (self._index(gfn, False), self._index(gfn, True))
            if not any(self.flags[index] & (FLAG_APART | FLAG_TABLE) for index in both):
                for index in both:
                    self.flags[index] |= FLAG_WATCHED
        super().checkpoint()
        self._random.seed(self._seed)

    def rollback(self) -> bool:
        """See `GuestRam`; the cache is empty afterwards."""
        self._pages.clear()
        self._random.seed(self._seed)
        return super().rollback()


def _copy_lines(target: memoryview | bytearray, source: bytes, lines: int) -> None:
    if lines == _ALL:
        target[:] = source
        return
    while lines:
        line = (lines & -lines).bit_length() - 1
        start = line << LINE_SHIFT
        target[start : start + LINE_SIZE] = source[start : start + LINE_SIZE]
        lines &= lines - 1


def peek(ram: GuestRam, gpa: Gpa, size: int, private: bool) -> bytes:
    """What a load by one alias would give, on a machine with or without caches."""
    return (
        ram.peek(gpa, size, private) if isinstance(ram, CachedRam) else ram.read(gpa, size, private)
    )
