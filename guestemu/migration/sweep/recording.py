# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host could see of the window: stores to the page, and the steps of its conversion.

The window runs once on a stepping station. Noted are, with the number of instructions before them:
stores to the page, stores to the entries that map it, INVLPG, WBINVD, CLFLUSH, moves to control
registers, VMMCALL and TDCALL.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.tdx import TDCALL
from guestemu.abi.x86 import PTE_ADDRESS_MASK, PTE_PSE
from guestemu.machine.callbacks import MemoryHook
from guestemu.machine.engine import HOOK_MEM, MEM_WRITE
from guestemu.migration.stepping import Stepper
from guestemu.migration.sweep.scenario import SweepScenario
from guestemu.migration.sweep.station import Station

WINDOW_LIMIT: Final = 500_000
_LEVELS: Final = 4
_RUN_GAP: Final = 200
"""Stores to the page that are fewer instructions apart belong to one run."""

_MEMORY_OPERAND: Final = 0xC0
_INVLPG, _CLFLUSH = 7, 7
_DEFINED: Final = b"\xff"


class PageStore(msgspec.Struct, frozen=True, gc=False):
    """A store to the page by instruction `index`: the view, `offset` and `size` in bytes."""

    index: int
    is_private: bool
    offset: int
    size: int


class ConversionStep(msgspec.Struct, frozen=True):
    """A step of the conversion by instruction `index`: "pte", "pmd" …, "invlpg", "wbinvd",
    "clflush", "mov-cr", "vmmcall" or "tdcall"; `value` is what an entry got, else 0."""

    index: int
    kind: str
    value: int = 0


class Flip(msgspec.Struct, frozen=True):
    """The page's leaf changed its C-bit at instruction `index`."""

    index: int
    is_private: bool


class WindowRecording(msgspec.Struct, frozen=True):
    """The window of one scenario, `length` instructions long. All lists are in order."""

    length: int
    stores: tuple[PageStore, ...]
    events: tuple[ConversionStep, ...]
    flips: tuple[Flip, ...]

    def is_private_at(self, index: int) -> bool:
        """Whether the guest reaches the page with C=1 when `index` instructions are done."""
        before = [flip for flip in self.flips if flip.index < index]
        return before[-1].is_private if before else True

    def stored(self, first: int, end: int) -> bool:
        """Whether one of the instructions from `first` to `end` - 1 stored to the page."""
        indices = [store.index for store in self.stores]
        return bisect_left(indices, first) < bisect_left(indices, end)

    def defined_at(self, index: int) -> bytes:
        """A byte for each of the page, 0xFF where the guest may rely on its content when `index`
        instructions are done: all of it before the first flip, afterwards what was stored since the
        last one."""
        flips = [flip.index for flip in self.flips if flip.index < index]
        if not flips:
            return _DEFINED * PAGE_SIZE
        mask = bytearray(PAGE_SIZE)
        for store in self.stores:
            if flips[-1] < store.index < index:
                mask[store.offset : store.offset + store.size] = _DEFINED * store.size
        return bytes(mask)

    def runs(self) -> list[list[PageStore]]:
        """The stores, grouped: one memset of the page is one run."""
        runs: list[list[PageStore]] = []
        for store in self.stores:
            if runs and store.index - runs[-1][-1].index < _RUN_GAP:
                runs[-1].append(store)
            else:
                runs.append([store])
        return runs


def record_window(station: Station, scenario: SweepScenario) -> WindowRecording:
    """Steps the guest of `station`, which stands at the scenario's start, through the window."""
    recorder = _Recorder(station, scenario)
    stepper = Stepper(station.machine)
    while stepper.rip != scenario.window_end and stepper.index < WINDOW_LIMIT:
        recorder.before(stepper.index, stepper.rip)
        stepper.to(stepper.index + 1)
    return recorder.finish(stepper.index)


class _Recorder:
    def __init__(self, station: Station, scenario: SweepScenario) -> None:
        self._machine = station.machine
        self._scenario = scenario
        self._index = 0
        self._kinds: dict[int, str] = {}
        self._stores: list[PageStore] = []
        self._events: list[ConversionStep] = []
        self._table_stores: list[tuple[int, int, int]] = []
        self._bit = station.machine.ram.bit
        station.machine.engine.add_hook(HOOK_MEM, MemoryHook(self._on_access))

    def before(self, index: int, rip: int) -> None:
        """The instruction at `rip` is about to execute."""
        self._index = index
        kind = self._kinds.get(rip)
        if kind is None:
            code = self._machine.current.read_memory(Gva(rip), 4) or b""
            kind = self._kinds[rip] = _kind_of(code)
        if kind:
            self._events.append(ConversionStep(index, kind))

    def _on_access(
        self, _uc: object, kind: int, address: int, size: int, value: int, _user: object
    ) -> None:
        if kind != MEM_WRITE:
            return
        gpa = address & ~self._bit.mask
        if gpa >> PAGE_SHIFT == self._scenario.gfn:
            is_private = self._bit.is_private(address)
            self._stores.append(PageStore(self._index, is_private, gpa & PAGE_MASK, size))
        elif size == 8:
            self._table_stores.append((self._index, gpa, value & (1 << 64) - 1))

    def finish(self, length: int) -> WindowRecording:
        """The recording; only now is it known which entries map the page."""
        entries = self._entries()
        bit = self._machine.bit
        is_private = True
        flips: list[Flip] = []
        for index, gpa, value in self._table_stores:
            if gpa not in entries:
                continue
            self._events.append(ConversionStep(index, entries[gpa], value))
            is_leaf = bool(value) if entries[gpa] == "pte" else bool(value & PTE_PSE)
            if is_leaf and bit.is_private(value) != is_private:
                is_private = not is_private
                flips.append(Flip(index, is_private))
        events = tuple(sorted(self._events, key=lambda event: event.index))
        return WindowRecording(length, tuple(self._stores), events, tuple(flips))

    def _entries(self) -> dict[int, str]:
        """GPAs of the entries on the way to the page, with their levels' names."""
        machine = self._machine
        table = machine.current.read_register("cr3") & PTE_ADDRESS_MASK & ~machine.pte_cbit
        found = {}
        for level, name in zip(range(_LEVELS, 0, -1), ("pgd", "pud", "pmd", "pte"), strict=True):
            shift = PAGE_SHIFT + 9 * (level - 1)
            gpa = table + 8 * (self._scenario.gva >> shift & 511)
            found[gpa] = name
            entry = machine.ram.read_u64(Gpa(gpa))
            if level in {2, 3} and entry & PTE_PSE:
                break
            table = entry & PTE_ADDRESS_MASK & ~machine.pte_cbit
        return found


def _kind_of(code: bytes) -> str:
    """The instruction in `code`, if a host could notice it; "" for all others."""
    if 0x40 <= code[0] <= 0x4F:
        code = code[1:]
    opcode, operand = code[:2], code[2] if len(code) > 2 else 0
    is_memory = operand < _MEMORY_OPERAND
    if code[:3] == b"\x0f\x01\xd9":
        return "vmmcall"
    if code == TDCALL:
        return "tdcall"
    if opcode == b"\x0f\x01" and is_memory and operand >> 3 & 7 == _INVLPG:
        return "invlpg"
    if opcode == b"\x0f\x22":
        return "mov-cr"
    if opcode == b"\x0f\x09":
        return "wbinvd"
    if opcode == b"\x0f\xae" and is_memory and operand >> 3 & 7 == _CLFLUSH:
        return "clflush"
    return ""
