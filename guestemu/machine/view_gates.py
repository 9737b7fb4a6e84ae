# SPDX-License-Identifier: GPL-2.0-or-later
"""Views of pages that the CPU may not reach: closed, or read-only.

Hardware keeps, for each page of a protected guest, which accesses pass: the RMP of an SNP host, the
secure EPT of a TD. A memory hook cannot enforce that: it sees an access and cannot prevent it, the
instruction and the rest of its block still run (N33). What the emulator does prevent is an access
that has no translation. So a machine with gates translates by a walk of its own (tlb.py), which
refuses a view that is closed: the CPU stops before the access, with RIP at the instruction and no
register changed, and the run ends with a `ViewFault` or with what `on_fault` makes of it.

Considered and not done: to leave closed views out of the CPU's physical map. Each change cuts a
mapping and builds the map anew, 50 microseconds; changing a gate costs a flush of the TLB.

That flush costs more than the change, so a frame is marked when the CPU gets a translation of it or
reads it as a page table: a change of one that is not marked needs none.

A machine without gates pays nothing. Gates are put in after a boot, at any time, by
`Machine.gate_views`.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from guestemu.machine.exits import Exit, ViewFault
from guestemu.machine.restorable_bytes import RestorableBytes

if TYPE_CHECKING:
    from guestemu.machine.engine import Engine

CLOSED: Final = 0
READ: Final = 1
WRITE: Final = 2
FETCH: Final = 4
READ_ONLY: Final = READ
OPEN: Final = READ | WRITE | FETCH

_RIGHTS: Final = OPEN
_TRANSLATED: Final = 8
"""A flag beside the rights: the TLB may hold a translation of the frame, or one read from it."""
_UNMARKED: Final = bytes(value & _RIGHTS for value in range(256))

RIGHT_OF: Final = {"read": READ, "write": WRITE, "fetch": FETCH, "walk": READ}

FaultHandler = Callable[[ViewFault], Exit | None]


@functools.cache
def _other_than(state: int) -> re.Pattern[bytes]:
    return re.compile(b"[^" + re.escape(bytes([state])) + b"]")


def state_runs(states: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Each run of frames in one state, one byte for each frame: the state, and how many frames."""
    start, total = 0, len(states)
    while start < total:
        state = states[start]
        found = _other_than(state).search(states, start)
        end = total if found is None else found.start()
        yield state, end - start
        start = end


class ViewGates:
    """The rights of both views of each of `frames` frames; all open at first. A `Device`.

    `rights` has a byte of READ, WRITE and FETCH for each view; indices as in `GuestRam`: `gfn` for
    the shared view, `frames + gfn` for the private one. `fetches_private`: an instruction fetch is
    an access to the private view whatever the page table says (SEV: APM volume 2, 15.34.5).

    `on_fault` decides about a refused access, after the CPU has stopped: None to execute the
    instruction again (it has opened the view), an exit to end the run, or it raises `GuestFault` to
    inject an exception. Without it the fault itself is the exit.
    """

    def __init__(self, engine: Engine, frames: int, fetches_private: bool) -> None:
        self.frames = frames
        self.fetches_private = fetches_private
        self.rights = bytearray([OPEN]) * (2 * frames)
        self.on_fault: FaultHandler | None = None
        self._engine = engine
        self._kept = RestorableBytes(self.rights)
        self._is_stale = False

    def right(self, gfn: int, private: bool) -> int:
        """The rights of one view of a frame."""
        return self.rights[self.frames + gfn if private else gfn] & _RIGHTS

    def mark(self, gfn: int) -> None:
        """The TLB is about to hold a translation of frame `gfn`, or one read from it."""
        self.rights[gfn] |= _TRANSLATED
        self.rights[self.frames + gfn] |= _TRANSLATED

    def set(self, gfn: int, pages: int, *, private: int, shared: int) -> None:
        """Sets the rights of both views of `pages` frames from `gfn` on; frames beyond RAM are left
        out. Also from within an exit: the next access sees it."""
        frames = self.frames
        count = pages if gfn + pages <= frames else frames - gfn
        if count <= 0:
            return
        if count == 1:
            self.set_page(gfn, private, shared)
            return
        rights, other = self.rights, frames + gfn
        self._kept.note(gfn, count)
        self._kept.note(other, count)
        lost = 0
        for start, right in ((gfn, shared), (other, private)):
            for old in set(rights[start : start + count]):
                lost |= old & ~right
            rights[start : start + count] = bytes([right]) * count
        if lost & _TRANSLATED:
            self._engine.flush_tlb()

    def set_page(self, gfn: int, private: int, shared: int) -> None:
        """`set` of one frame within RAM."""
        rights, other = self.rights, self.frames + gfn
        note = self._kept.note
        note(gfn, 1)
        note(other, 1)
        lost = (rights[gfn] & ~shared) | (rights[other] & ~private)
        rights[gfn], rights[other] = shared, private
        if lost & _TRANSLATED:
            self._engine.flush_tlb()

    @property
    def rights_address(self) -> int:
        """The host address of `rights`."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.rights))

    def passes(self, gfn: int, private: bool, kind: str) -> bool:
        """Whether an access of `kind` ("read", "write", "fetch", "walk") reaches the view."""
        return bool(self.right(gfn, private) & RIGHT_OF[kind])

    def checkpoint(self) -> None:
        """See `Device`."""
        self._kept.checkpoint(bytes(self.rights.translate(_UNMARKED)))

    def rollback(self) -> None:
        """See `Device`; the caller asks `take_stale` whether the TLB has to be flushed."""
        if self._kept.rollback():
            self._is_stale = True

    def take_stale(self) -> bool:
        """Whether a rollback left translations that are wrong now; asked once."""
        is_stale, self._is_stale = self._is_stale, False
        return is_stale
