# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM with two views of every page.

A SEV guest's DRAM holds one set of bytes. An access with C=0 reads and writes them as they are; an
access with C=1 goes through the cipher. Here each view has a buffer of its own, mapped into the
CPU's physical address space at `gpa` (shared view) and at `gpa | C-bit` (private view), and at any
time at least one of a page's two buffers is current. A write to one view makes the other *stale*;
an access to a stale view converts it first. That is exact, not settled at intervals: every load and
store of the guest passes a hook that tests one flag byte, so a store through C=1, a flip and a load
through C=0 inside one uninterrupted run read ciphertext, as on hardware.

What is not settled: instruction fetches and the CPU's own page walk. Code that was last written
through the other view is fetched as the buffer has it. Page tables are only ever private here.
An access that crosses a page boundary settles the first page and the next physical one.

The first `low` pages are *mirrored*: both views are the same bytes. Legacy modes without paging
need that: on hardware their accesses are private (APM volume 2, 15.34.4), in Unicorn they carry no
C-bit.

A TD's bit means the opposite (view_bit.py), and its views are different host pages: no byte of one
is ever read through the other (T10). All its flags are FLAG_APART and no page is mirrored.

Why flag bytes and hooks: two plain buffers are too kind to a SEV guest (after shared -> private the
private buffer would still hold its old content), and per-page protection changes cost milliseconds.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import Final, TypeVar

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.machine.callbacks import MemoryHook
from guestemu.machine.cipher import PageCipher
from guestemu.machine.engine import HOOK_MEM, MEM_WRITE, Engine
from guestemu.machine.memory_watch import (
    FLAG_APART,
    FLAG_DIRTY,
    FLAG_STALE,
    FLAG_TABLE,
    FLAG_WATCHED,
    MemoryWatch,
)
from guestemu.machine.native import HostCode
from guestemu.machine.resident import resident_pages
from guestemu.machine.view_bit import ViewBit

_CHUNK: Final = 1 << 20
_WORD: Final = 8
_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
_LOG_CAPACITY: Final = 1 << 16
_LOG_COUNT: Final = [name for name, _type in MemoryWatch._fields_].index("log_count")
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_WATCH: Final = bytes(flags | FLAG_WATCHED for flags in range(256))
_IGNORE: Final = bytes(flags & ~FLAG_WATCHED for flags in range(256))


def _anonymous(size: int) -> mmap.mmap:
    """Private anonymous memory: a fork must not share guest RAM; untouched pages are free."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return mmap.mmap(-1, size, flags=flags)


_Word = TypeVar("_Word", ctypes.c_uint32, ctypes.c_uint64)


def _words(kind: type[_Word], count: int) -> ctypes.Array[_Word]:
    """`count` zero words, which take memory only where they are written."""
    return (kind * count).from_buffer(_anonymous(count * ctypes.sizeof(kind)))


def _store(target: mmap.mmap, start: int, data: bytes) -> None:
    """Writes `data` where it is not there yet: pages without a store take no memory."""
    end = start + len(data)
    if target[start:end] != data:
        target[start:end] = data


def _content(data: bytes) -> int:
    """The host address of the bytes of `data`, which the caller keeps."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _address(buffer: mmap.mmap | bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class GuestRam:
    """`frames` 4 KiB frames from GPA 0 on, in two views.

    `bit` selects the view in a physical address; `low` frames are mirrored. Indices of the flag
    bytes and of the dirty list are `gfn` for the view that lies at the plain physical address, and
    `frames + gfn` for the view with the bit set, which is a SEV guest's private one.
    """

    def __init__(
        self, engine: Engine, frames: int, bit: ViewBit, cipher: PageCipher, low: int = 0
    ) -> None:
        self.frames = frames
        self.bit = bit
        self.cbit_mask = bit.mask
        self.cipher = cipher
        self.low = low
        self._private_at = frames if bit.private else 0
        self._shared_at = frames - self._private_at
        self._engine = engine
        size = frames * PAGE_SIZE
        self._shared_map = _anonymous(size)
        self._private_map = _anonymous(size)
        self.shared = memoryview(self._shared_map)
        self.private = memoryview(self._private_map)
        if low:
            engine.map(0, low * PAGE_SIZE, _address(self._private_map))
            engine.map(bit.mask, low * PAGE_SIZE, _address(self._private_map))
        offset = low * PAGE_SIZE
        if offset < size:
            engine.map(bit.shared | offset, size - offset, _address(self._shared_map) + offset)
            engine.map(bit.private | offset, size - offset, _address(self._private_map) + offset)
        self.flags = _anonymous(2 * frames)
        self._set_first_flags()
        self._dirty = _words(ctypes.c_uint32, 2 * frames)
        self.dirty_list = memoryview(self._dirty).cast("B").cast("I")
        self._log = (ctypes.c_uint64 * (2 * _LOG_CAPACITY))()
        self._log_words = memoryview(self._log).cast("B").cast("Q")
        self._spilled: list[tuple[int, int]] = []
        self.watch = MemoryWatch()
        self.watch.flags = _address(self.flags)
        self.watch.frames = frames
        self.watch.dirty = ctypes.addressof(self._dirty)
        self.watch.log = ctypes.addressof(self._log)
        self.watch.log_capacity = _LOG_CAPACITY
        self.watch.cbit_mask = bit.mask
        self.errors: list[BaseException] = []
        self.has_crossing = False
        self.is_plain = False
        """Accesses are not watched yet (`adopt` ends that): each view is just its buffer."""
        self.watched: set[int] = set()
        self.on_watched: Callable[[int, bool, bool], None] | None = None
        """Called before a load or store of a page's view that `watch_views` named, with frame,
        whether the view is private, whether it is a store."""
        self._slow = MemoryHook(self._on_access)
        self.watch.slow = ctypes.cast(self._slow, ctypes.c_void_p)
        self._base: dict[int, bytes] = {}
        self._base_flags = _anonymous(2 * frames)
        self._keep_flags()
        self._base_pages = _words(ctypes.c_uint64, 2 * frames)
        self.watch.base_flags = _address(self._base_flags)
        self.watch.base_pages = ctypes.addressof(self._base_pages)
        views = (self._private_map, self._shared_map)
        self.watch.private, self.watch.shared = map(_address, views if bit.private else views[::-1])
        self._private_start, self._shared_start = map(_address, views)
        self.watch.low = low
        self.watch.zero_page = _content(_ZERO_PAGE)
        self._watch_words = memoryview(self.watch).cast("B").cast("Q")
        self._watch_at = ctypes.c_void_p(ctypes.addressof(self.watch))
        self._native_rollback: Callable[[ctypes.c_void_p], int] | None = None
        self._native_find: Callable[[ctypes.c_void_p, int, int], None] | None = None

    @property
    def are_views_apart(self) -> bool:
        """Whether the views are different memory (a TD) and not two readings of the same DRAM."""
        return not self.bit.private

    def _set_first_flags(self) -> None:
        """Private views are current, the low pages mirrored; or all views are, apart."""
        frames = self.frames
        is_apart = self.are_views_apart
        for first, flag in ((0, FLAG_STALE), (frames, 0)):
            flags = bytes([FLAG_APART if is_apart else flag])
            for start in range(first, first + frames, _CHUNK):
                size = min(_CHUNK, first + frames - start)
                _store(self.flags, start, flags * size)
        for page in range(self.low):
            self.flags[page] = self.flags[frames + page] = FLAG_APART

    def _keep_flags(self) -> None:
        for start in range(0, 2 * self.frames, _CHUNK):
            _store(self._base_flags, start, self.flags[start : start + _CHUNK])

    def install(self, code: HostCode) -> None:
        """Adds the load and store hook: host machine code where there is some, else Python."""
        if code.available:
            self._engine.add_native_hook(HOOK_MEM, code.memory_hook, self.watch)
            kind = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)
            self._native_rollback = kind(code.rollback)
            find = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
            self._native_find = find(code.find_unseen)
        else:
            self._engine.add_hook(HOOK_MEM, self._slow)

    # The hook's slow path ---------------------------------------------------------------------

    def _on_access(
        self, _uc: object, kind: int, address: int, size: int, value: int, _user: object
    ) -> None:
        try:
            self.note_access(kind == MEM_WRITE, address, size, value)
        except BaseException as error:
            self.errors.append(error)
            self._engine.stop()

    def note_access(self, is_write: bool, address: int, size: int, value: int) -> None:
        """What a load or store at physical `address` does to the flags; the whole semantics, of
        which the machine code does the common part."""
        gfn = (address & ~self.bit.mask) >> PAGE_SHIFT
        if gfn >= self.frames:
            return
        is_private = self.bit.is_private(address)
        if self.on_watched is not None:
            index = gfn + (self._private_at if is_private else self._shared_at)
            if self.flags[index] & FLAG_WATCHED:
                self.on_watched(gfn, is_private, is_write)
        if (address & PAGE_MASK) + size > PAGE_SIZE:
            self.has_crossing |= is_write
            if gfn + 1 < self.frames:
                self._touch(is_write, gfn + 1, is_private)
        index = self._touch(is_write, gfn, is_private)
        if is_write and self.flags[index] & FLAG_TABLE:
            self._log_table_write(address, value & 0xFFFF_FFFF_FFFF_FFFF)

    def _touch(self, is_write: bool, gfn: int, is_private: bool) -> int:
        index = gfn + (self._private_at if is_private else self._shared_at)
        other = gfn + (self._shared_at if is_private else self._private_at)
        flags = self.flags
        if flags[index] & FLAG_STALE:
            self._settle(gfn, is_private)
        if is_write:
            if not flags[index] & FLAG_APART:
                flags[other] |= FLAG_STALE
            self._mark_dirty(index)
        return index

    def _mark_dirty(self, index: int) -> None:
        if not self.flags[index] & FLAG_DIRTY:
            self.flags[index] |= FLAG_DIRTY
            count = self.watch.dirty_count
            self.dirty_list[count] = index
            self.watch.dirty_count = count + 1

    def _settle(self, gfn: int, is_private: bool) -> None:
        """Makes one view of a page current from the other."""
        start = gfn * PAGE_SIZE
        end = start + PAGE_SIZE
        if is_private:
            self.private[start:end] = self.cipher.decrypt(Gfn(gfn), self.shared[start:end])
            index = self._private_at + gfn
        else:
            self.shared[start:end] = self.cipher.encrypt(Gfn(gfn), self.private[start:end])
            index = self._shared_at + gfn
        self.flags[index] &= ~FLAG_STALE
        self._mark_dirty(index)

    def _log_table_write(self, address: int, value: int) -> None:
        count = self.watch.log_count
        if count >= _LOG_CAPACITY:
            self._spill()
            count = 0
        self._log_words[2 * count] = address
        self._log_words[2 * count + 1] = value
        self.watch.log_count = count + 1

    def _spill(self) -> None:
        words = self._log_words[: 2 * self.watch.log_count].tolist()
        self._spilled.extend(zip(words[::2], words[1::2], strict=True))
        self.watch.log_count = 0

    # Page-table writes ------------------------------------------------------------------------

    def table_writes(self) -> list[tuple[int, int]]:
        """Every store into a page-table page since the last call: (physical address, value).

        Addresses carry the view bit of the access. Clears the log.
        """
        watch = self.watch
        count = watch.log_count
        if not count and not self._spilled:
            return []
        if count == 1 and not self._spilled:
            watch.log_count = 0
            words = self._log_words
            return [(words[0], words[1])]
        self._spill()
        writes, self._spilled = self._spilled, []
        return writes

    @property
    def table_write_count(self) -> int:
        """Stores into page-table pages since the last `table_writes()`."""
        return self._watch_words[_LOG_COUNT] + len(self._spilled)

    def watch_views(self, gfn: int, pages: int, *, private: bool, shared: bool) -> None:
        """Whether accesses of the CPU to one view of `pages` frames go to `on_watched` first. Costs
        nothing for the views that do not. The caller restores this after a rollback."""
        flags = self.flags
        if pages == 1:
            index, other = self._private_at + gfn, self._shared_at + gfn
            flags[index] = (_WATCH if private else _IGNORE)[flags[index]]
            flags[other] = (_WATCH if shared else _IGNORE)[flags[other]]
            return
        for start, is_watched in ((self._private_at, private), (self._shared_at, shared)):
            change = _WATCH if is_watched else _IGNORE
            end = start + min(gfn + pages, self.frames)
            flags[start + gfn : end] = flags[start + gfn : end].translate(change)

    def mark_table(self, gfn: int) -> None:
        """From now on stores into the private view of frame `gfn` are logged."""
        self.flags[self._private_at + gfn] |= FLAG_TABLE

    def is_table(self, index: int) -> bool:
        """Whether stores into the page with this index (of the dirty list) are logged."""
        return bool(self.flags[index] & FLAG_TABLE)

    # Host-side access -------------------------------------------------------------------------

    def read(self, gpa: Gpa, size: int, private: bool = True) -> bytes:
        """`size` bytes at `gpa` as one view shows them; the range lies within RAM."""
        if not self.is_plain:
            for gfn in range(gpa >> PAGE_SHIFT, (gpa + size - 1 >> PAGE_SHIFT) + 1):
                self._touch(False, gfn, private)
        view = self.private if private or gpa < self.low * PAGE_SIZE else self.shared
        return bytes(view[gpa : gpa + size])

    def write(self, gpa: Gpa, data: bytes, private: bool = True) -> None:
        """Stores `data` at `gpa` through one view; the range lies within RAM. Not logged as the
        guest's page-table write: callers that edit tables say so themselves."""
        if not self.is_plain:
            for gfn in range(gpa >> PAGE_SHIFT, (gpa + len(data) - 1 >> PAGE_SHIFT) + 1):
                self._touch(True, gfn, private)
        view = self.private if private or gpa < self.low * PAGE_SIZE else self.shared
        view[gpa : gpa + len(data)] = data

    def shared_page(self, gpa: Gpa) -> int:
        """The host address at which the page at `gpa` is as the shared view shows it, for a caller
        that stores there now; valid until the private view is used."""
        gfn = gpa >> PAGE_SHIFT
        if not self.is_plain:
            self._touch(True, gfn, False)
        is_private = self.bit.private and gfn < self.low
        return (self._private_start if is_private else self._shared_start) + gpa

    def read_u64(self, gpa: Gpa) -> int:
        """The private view's 64-bit little-endian word at `gpa`."""
        return int.from_bytes(self.private[gpa : gpa + 8], "little")

    def write_u64(self, gpa: Gpa, value: int) -> None:
        """Stores a 64-bit little-endian word through the private view."""
        self.write(gpa, value.to_bytes(8, "little"))

    def dram(self, gfn: Gfn) -> bytes:
        """The 4096 bytes that DRAM holds for frame `gfn`."""
        return self.read(Gpa(gfn * PAGE_SIZE), PAGE_SIZE, private=False)

    def dirty_frames(self) -> set[int]:
        """Frames written through either view since the checkpoint."""
        frames = self.frames
        return {index % frames for index in self.dirty_list[: self.watch.dirty_count]}

    def base_pages(self) -> Iterator[tuple[Gfn, bool, bytes]]:
        """The frames that had content of their own at the checkpoint, from low to high: whether the
        private view was current, and what that view (else the shared one) held."""
        frames = self.frames
        for gfn in sorted({index % frames for index in self._base}):
            private = self._private_at + gfn
            is_private = private in self._base and not self._base_flags[private] & FLAG_STALE
            index = private if is_private else self._shared_at + gfn
            yield Gfn(gfn), is_private, self._base[index]

    # Checkpoint and rollback ------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Makes the present content the one that `rollback` restores."""
        for index in self.dirty_list[: self.watch.dirty_count]:
            self.flags[index] &= ~FLAG_DIRTY
            content = bytes(self._page(index))
            self._keep_base(index, content)
            if index % self.frames < self.low:
                self._keep_base((index + self.frames) % (2 * self.frames), content)
        self.watch.dirty_count = 0
        self.table_writes()
        self._keep_flags()

    def _keep_base(self, index: int, content: bytes) -> None:
        self._base[index] = content
        self._base_pages[index] = _content(content)

    def adopt(self, shared: Iterable[int]) -> None:
        """Takes the two buffers as they are, after a phase in which accesses were not watched.

        The current view of a frame in `shared` is the shared one, of all others the private one.
        Every page that is not zero is marked dirty, so that the next checkpoint keeps it.
        """
        self.is_plain = False
        flags = self.flags
        self._set_first_flags()
        self.watch.dirty_count = 0
        for gfn in () if self.are_views_apart else shared:
            if gfn >= self.low:
                flags[self._shared_at + gfn] = 0
                flags[self._private_at + gfn] = FLAG_STALE
        for index in self._resident():
            if not flags[index] & FLAG_STALE and self._page(index) != _ZERO_PAGE:
                self._mark_dirty(index)

    def shared_current(self) -> list[int]:
        """Frames whose private view is stale: what they hold was written with C=0."""
        stale = bytes(bool(flags & FLAG_STALE) for flags in range(256))
        private = self.flags[self._private_at : self._private_at + self.frames]
        return list(compress(range(self.frames), private.translate(stale)))

    def close(self) -> None:
        """Gives both views' pages back, after the engine was closed; they read as zeros then."""
        self._base.clear()
        for view in (self._shared_map, self._private_map):
            view.madvise(mmap.MADV_DONTNEED)

    def _resident(self) -> list[int]:
        """Indices of the pages of both views that were ever touched."""
        frames = self.frames
        return [
            start + gfn
            for start, view in (
                (self._shared_at, self._shared_map),
                (self._private_at, self._private_map),
            )
            for gfn in resident_pages(_address(view), frames)
        ]

    def _page(self, index: int) -> memoryview:
        gfn = index % self.frames
        is_private = index - gfn == self._private_at or gfn < self.low
        start = gfn * PAGE_SIZE
        return (self.private if is_private else self.shared)[start : start + PAGE_SIZE]

    def rollback(self) -> bool:
        """Back to the checkpoint; True if a page table was among the restored pages, so that the
        TLB holds stale translations."""
        if self.has_crossing:
            self.find_unseen_writes()
        if self._spilled:
            self._spilled = []
        if self._native_rollback is not None:
            return bool(self._native_rollback(self._watch_at) & FLAG_TABLE)
        frames = self.frames
        flags = self.flags
        base_flags = self._base_flags
        had_table = False
        for index in self.dirty_list[: self.watch.dirty_count]:
            other = index - frames if index >= frames else index + frames
            if base_flags[index] & FLAG_TABLE or flags[index] & FLAG_TABLE:
                had_table = True
            if not base_flags[index] & FLAG_STALE:
                self._page(index)[:] = self._base.get(index, _ZERO_PAGE)
            flags[index] = base_flags[index]
            flags[other] = base_flags[other]
        self.watch.dirty_count = 0
        self.watch.log_count = 0
        return had_table

    def find_unseen_writes(self) -> None:
        """After a store that crossed into another page: marks that page dirty.

        The emulator names an access by its first byte, and the page behind it may lie anywhere. A
        store has at most 8 bytes, so it changed the first word of the page: those are compared with
        the checkpoint's.
        """
        self.has_crossing = False
        resident = self._resident()
        if self._native_find is not None:
            pages = array("I", resident)
            at, count = pages.buffer_info()
            self._native_find(self._watch_at, at, count)
            return
        for index in resident:
            if not self._base_flags[index] & FLAG_STALE:
                base = self._base.get(index, _ZERO_PAGE)
                if bytes(self._page(index)[:_WORD]) != base[:_WORD]:
                    self._mark_dirty(index)
