# SPDX-License-Identifier: GPL-2.0-or-later
"""The dirty log of a migrating guest: which frames were written since they were last cleared.

The memory hook appends a page to the machine's list of written pages only once after a checkpoint,
because that is all that a rollback needs. Clearing a frame here takes the page's dirty flag away,
so that its next store is appended again: the log is the end of the list, and a machine that does
not migrate pays nothing. A page is in the list twice then, which a rollback does not mind.

A conversion between the two views also marks a page, and is not a store. Clearing makes both views
current first; after that a page appears only if it was written.

Not seen: the second page of a store across a boundary whose next frame is another one (memory.py).
Source of the two ways to clear: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG with
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Documentation/virt/kvm/api.rst), D30.
"""

from __future__ import annotations

from collections.abc import Iterable

from guestemu.abi.addresses import Gpa
from guestemu.machine.memory import GuestRam
from guestemu.machine.memory_watch import FLAG_DIRTY


class DirtyLog:
    """The log of some frames, `tracked`; all of them start dirty."""

    def __init__(self, ram: GuestRam, tracked: Iterable[int]) -> None:
        self._ram = ram
        self._tracked = frozenset(tracked)
        self._dirty = set(self._tracked)
        self._seen = int(ram.watch.dirty_count)

    def get(self) -> frozenset[int]:
        """The frames in the log, which keeps them."""
        self._collect()
        return frozenset(self._dirty)

    def clear(self, frames: Iterable[int]) -> None:
        """Removes `frames` from the log; the next store adds them again."""
        self._collect()
        gone = self._dirty.intersection(frames)
        self._dirty -= gone
        ram = self._ram
        flags = ram.flags
        for gfn in gone:
            gpa = Gpa(gfn << 12)
            ram.read(gpa, 1)
            ram.read(gpa, 1, private=False)
            flags[gfn] &= ~FLAG_DIRTY
            flags[ram.frames + gfn] &= ~FLAG_DIRTY
        if ram.watch.dirty_count > ram.frames:
            self._compact()
        self._seen = int(ram.watch.dirty_count)

    def _collect(self) -> None:
        ram = self._ram
        count = int(ram.watch.dirty_count)
        if count > self._seen:
            frames = ram.frames
            new = {index % frames for index in ram.dirty_list[self._seen : count]}
            self._dirty |= new & self._tracked
            self._seen = count

    def _compact(self) -> None:
        """Drops repetitions: the list has room for each page of each view once."""
        ram = self._ram
        pages = list(dict.fromkeys(ram.dirty_list[: ram.watch.dirty_count].tolist()))
        for place, index in enumerate(pages):
            ram.dirty_list[place] = index
        ram.watch.dirty_count = len(pages)
