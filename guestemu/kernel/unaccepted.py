# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the firmware left unaccepted: what a kernel's accept_memory() tells the host.

Such memory is private and not yet the guest's: in an SNP guest without RMP entry, in a TD pending.
The firmware's table has a bit for each unit of it, and the kernel accepts a unit at its first use
(drivers/firmware/efi/unaccepted_memory.c, Linux 6.6 and later; N24, T15). The bitmap is what keeps
a guest from accepting a page twice.

The kernel's own code runs. Two things stand in for the firmware: region L is put into the state
that it has before it is accepted, and `efi.unaccepted` points to a table in region D.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Gpa, Gva
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.events.base import Event
from guestemu.events.exits import MapGpaRangeExit
from guestemu.events.snp import Validation
from guestemu.events.tdx import Accept
from guestemu.guest.base import CallOutcome
from guestemu.guest.linux.boot import kind_of
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.machine.exits import Shutdown, Terminated
from guestemu.report.trace.words import op_word

ACCEPT: Final = "accept_memory"
UNITS: Final = 4
"""Units of 2 MiB, as the EFI stub makes them: region L."""

_TABLE: Final = struct.Struct("<IIQQQ")
_BITMAP_AT: Final = 24
_VERSION: Final = 1
_BITMAP_BYTES: Final = 8
_BY_SIZE: Final = (6, 12)
"""The first version whose function takes a size; before, it takes the end."""

_EINVAL: Final = 22
_LEVELS: Final = ("4 KiB", "2 MiB", "1 GiB")


class AcceptStep(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `told` are the ranges that the host heard, as (page from the start of the
    unaccepted memory, pages); `accepted` counts the guest's PVALIDATE or ACCEPT by size, those that
    failed apart; `bitmap` has a character for each unit afterwards, 1 for unaccepted; `result`
    says how the call ended."""

    what: str
    call: str
    told: tuple[tuple[int, int], ...]
    accepted: dict[str, int]
    bitmap: str
    result: str


class _Memory:
    """The guest with its unaccepted memory, put there anew by `begin`."""

    def __init__(self, guest: LinuxGuest) -> None:
        kernel = guest.kernel
        kernel.address(ACCEPT)
        self.guest = guest
        self.start = guest.gpa(Region.L, 0)
        self.recorder = BootRecorder()
        self._pointer = Gva(kernel.address("efi") + kernel.btf.offset("efi.unaccepted"))
        self._table = guest.gpa(Region.D, 0)
        parts = kernel.version.split(".")
        self._takes_size = (int(parts[0]), int(parts[1])) >= _BY_SIZE

    def begin(self) -> None:
        guest, recorder = self.guest, self.recorder
        guest.reset()
        guest.machine.hooks.handler = recorder
        recorder.answer = 0
        gfn, pages = self.start >> PAGE_SHIFT, UNITS * PMD_SIZE >> PAGE_SHIFT
        snp = None if guest.snp is None else guest.snp.snp
        if snp is not None:
            snp.convert(gfn, pages, private=False)
            snp.convert(gfn, pages, private=True)
        elif guest.td is not None:
            guest.td.sept.make_shared(gfn, pages)
            guest.td.sept.make_private(gfn, pages)
        table = _TABLE.pack(_VERSION, PMD_SIZE, self.start, _BITMAP_BYTES, (1 << UNITS) - 1)
        guest.machine.ram.write(self._table, table)
        guest.machine.current.write_memory(self._pointer, struct.pack("<Q", self._table))

    def accept(self, offset: int, size: int) -> CallOutcome:
        start = self.start + offset
        return self.guest.call(ACCEPT, start, size if self._takes_size else start + size)

    def forget(self, unit: int) -> None:
        """Sets a unit's bit once more, as nothing but a mistake does."""
        at = Gpa(self._table + _BITMAP_AT)
        ram = self.guest.machine.ram
        bits = int.from_bytes(ram.read(at, 8), "little") | 1 << unit
        ram.write(at, bits.to_bytes(8, "little"))

    def bitmap(self) -> str:
        bits = int.from_bytes(
            self.guest.machine.ram.read(Gpa(self._table + _BITMAP_AT), 8), "little"
        )
        return "".join(str(bits >> unit & 1) for unit in range(UNITS))

    def step(self, what: str, call: str, run: Callable[[], CallOutcome]) -> AcceptStep:
        log, seen = self.guest.machine.log, list[Event]()
        self.recorder.exits.clear()
        log.listener = seen.append
        try:
            outcome = run()
        finally:
            log.listener = None
        told = tuple(
            (told.args[0] - self.start >> PAGE_SHIFT, told.args[1])
            for told in self.recorder.exits
            if isinstance(told, MapGpaRangeExit)
        )
        return AcceptStep(
            what=what,
            call=call,
            told=told,
            accepted=dict(Counter(filter(None, map(_accepted, seen)))),
            bitmap=self.bitmap(),
            result=_result(outcome),
        )


def unaccepted_memory(guest: LinuxGuest) -> tuple[AcceptStep, ...]:
    """What the kernel does with unaccepted memory, step by step, and what it must not get wrong.

    Raises `InputError` for a guest that is neither SNP nor TDX, or a kernel without the code.
    """
    if guest.snp is None and guest.td is None:
        raise InputError(
            f"sev {kind_of(guest.machine.config)}: only SNP guests and TDs accept memory"
        )
    memory = _Memory(guest)
    unit = PMD_SIZE

    def accepts(what: str, offset: int, size: int) -> AcceptStep:
        call = f"{ACCEPT}({offset:#x}, {size:#x})"
        return memory.step(what, call, lambda: memory.accept(offset, size))

    def touches(what: str, offset: int) -> AcceptStep:
        gva = Gva(guest.gva(Region.L, 0) + offset)
        return memory.step(what, f"memset({offset:#x})", lambda: guest.memset(gva, 1, 8))

    memory.begin()
    steps = [
        accepts("a page: its whole unit", 0, PAGE_SIZE),
        accepts("the same page again", 0, PAGE_SIZE),
        touches("a store to it", 0),
        accepts("a whole unit: the next one is the guard", unit, unit),
        accepts("all units: what is left", 0, UNITS * unit),
    ]
    memory.begin()
    steps.append(touches("a store to unaccepted memory", 3 * unit))
    memory.begin()
    memory.accept(0, PAGE_SIZE)
    memory.forget(0)
    steps.append(accepts("an accepted unit whose bit is set once more", 0, PAGE_SIZE))
    memory.begin()
    memory.recorder.answer = _EINVAL
    steps.append(accepts("the host refuses with 22", 0, PAGE_SIZE))
    guest.reset()
    return tuple(steps)


def _accepted(event: Event) -> str:
    """A word for what the guest accepted, "" for other events."""
    if isinstance(event, Validation):
        size = "2 MiB" if event.pages > 1 else "4 KiB"
        if event.is_double:
            return f"PVALIDATE of {size}, nothing changed"
        return f"PVALIDATE of {size}" + (f", result {event.result}" if event.result else "")
    if isinstance(event, Accept):
        failed = f", {event.result:#x}" if event.result else ""
        return f"ACCEPT of {_LEVELS[event.level]}{failed}"
    return ""


def _result(outcome: CallOutcome) -> str:
    if outcome.value is not None:
        return "returns"
    end = outcome.end
    if isinstance(end, Terminated):
        return f"the guest ends itself ({end.reason_set}/{end.reason_code})"
    return end.reason if isinstance(end, Shutdown) else op_word(outcome)
