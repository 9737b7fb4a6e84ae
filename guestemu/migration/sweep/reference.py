# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest that stayed where it was, and what a migrated one is compared with.

Registers, the MSRs, the clock, the log of exits, the status of every frame, and the content of
every page that either of the two wrote. Undefined content is not compared: that of a page
whose last store went through the other view than its status says. What its status's view reads is
then the cipher's image of that store, other bytes under every key.
"""

from __future__ import annotations

from itertools import zip_longest

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, gpa_text
from guestemu.abi.hypercalls import hypercall_text
from guestemu.guest.base import BootExit
from guestemu.machine.callbacks import MemoryHook
from guestemu.machine.engine import HOOK_MEM, MEM_WRITE
from guestemu.machine.exits import Exit, Trap
from guestemu.machine.vmsa import save_vmsa
from guestemu.migration.sweep.connection import is_es
from guestemu.migration.sweep.station import Station
from guestemu.migration.transfer import MachineState


class UndisturbedRun:
    """Runs `station`, which stands at the scenario's start and has not run yet, to `end`.

    `log` are its exits, `state` is where it ended, `undefined` the frames that are left out.
    """

    def __init__(self, station: Station, end: int) -> None:
        self.end = end
        self._ram = station.machine.ram
        last_view: dict[int, bool] = {}
        bit = self._ram.bit

        def on_access(
            _uc: object, kind: int, address: int, _size: int, _value: int, _user: object
        ) -> None:
            if kind == MEM_WRITE:
                last_view[(address & ~bit.mask) >> PAGE_SHIFT] = bit.is_private(address)

        station.machine.engine.add_hook(HOOK_MEM, MemoryHook(on_access))
        before = bytes(station.host.shared)
        ended = station.go_on()
        if not _is_at(ended, end):
            raise RuntimeError(f"the guest that stays ended with {ended}")
        self.log: list[BootExit] = list(station.host.exits)
        self._is_es = is_es(station.machine.config)
        self.state = self._capture(station)
        self._shared = bytes(station.host.shared)
        shared = self._shared
        self.undefined = frozenset(
            gfn
            for gfn, was_shared in enumerate(before)
            if last_view.get(gfn, not was_shared) == bool(shared[gfn])
        )
        self._pages = {gfn: self.content(gfn) for gfn in self._ram.dirty_frames()}

    def _capture(self, station: Station) -> MachineState:
        """The state to compare; of a SEV-ES guest what its save area has of the CPU."""
        state = station.capture()
        if not self._is_es:
            return state
        return msgspec.structs.replace(state, vcpus=(save_vmsa(station.machine),))

    def content(self, gfn: int) -> bytes:
        """The page at the end, as its status's view reads it."""
        return self._ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE, not self._shared[gfn])

    def difference(
        self,
        station: Station,
        ended: Exit,
        log: list[BootExit],
        own: frozenset[int] = frozenset(),
    ) -> str | None:
        """What is different in `station`, whose run ended with `ended`; None if nothing is.

        `log` are the exits that the source answered before, frames in `own` are not the guest's.
        """
        if not _is_at(ended, self.end):
            return f"ended with {ended}"
        exits = log + station.host.exits
        if exits != self.log:
            return _first_other_exit(self.log, exits)
        shared = self._shared
        if station.host.shared != shared:
            return "status differs"
        state = self._capture(station)
        if state != self.state:
            return _describe(self.state.vcpus[0], state.vcpus[0])
        ram = station.machine.ram
        pages = self._pages
        for gfn in (ram.dirty_frames() | pages.keys()) - own:
            if gfn in self.undefined:
                continue
            content = ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE, not shared[gfn])
            if gfn not in pages:
                pages[gfn] = self.content(gfn)
            if content != pages[gfn]:
                count = sum(map(int.__ne__, content, pages[gfn]))
                return f"{gpa_text(gfn)}: {count} bytes differ"
        return None


def _is_at(ended: Exit, address: int) -> bool:
    return isinstance(ended, Trap) and ended.rip == address


def _first_other_exit(expected: list[BootExit], found: list[BootExit]) -> str:
    index = next(i for i, pair in enumerate(zip_longest(expected, found)) if pair[0] != pair[1])
    wanted, came = (
        hypercall_text(log[index].nr, log[index].args) if index < len(log) else "no exit"
        for log in (expected, found)
    )
    return f"exit {index} is {came} instead of {wanted}"


def _describe(expected: bytes, found: bytes) -> str:
    if expected == found:
        return "MSRs or clock differ"
    first = next(
        i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]
    )
    return f"registers differ, first in byte {first} of the CPU's state"
