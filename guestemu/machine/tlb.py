# SPDX-License-Identifier: GPL-2.0-or-later
"""A page walk of our own, for view bits at positions that the emulated MMU refuses, and for
machines whose views of pages can be closed (view_gates.py) or whose vCPUs keep translations of
their own (translations.py).

The emulator is compiled with 40 physical address bits: a C-bit or shared bit at 40 or above is a
reserved bit to its walker. With its TLB in "virtual" mode every miss comes here. The walk reads the
literal bit (47, 51) from the entries and returns physical addresses with the internal one instead.
Not as faithful as the CPU's own walk: no accessed and dirty bits, and the caller raises #PF itself.
Translations that are granted are made in machine code where there is some (native/hooks.c).
"""

from __future__ import annotations

import ctypes
from typing import Final

from unicorn import unicorn_const as uc_const

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK, Gpa, Gva
from guestemu.abi.x86 import (
    CR0_PG,
    CR0_WP,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
    VECTOR_GP,
    VECTOR_PF,
)
from guestemu.machine.callbacks import TlbEntry, TlbHook
from guestemu.machine.engine import HOOK_TLB_FILL, REGISTERS, Engine, RegisterBatch
from guestemu.machine.exits import ViewFault
from guestemu.machine.memory import GuestRam
from guestemu.machine.native import HostCode
from guestemu.machine.paging import LEAF_SIZES, Leaf, walk
from guestemu.machine.translations import Translations
from guestemu.machine.view_bit import ViewBit
from guestemu.machine.view_gates import ViewGates

_READ: Final[int] = uc_const.UC_PROT_READ
_WRITE: Final[int] = uc_const.UC_PROT_WRITE
_EXEC: Final[int] = uc_const.UC_PROT_EXEC
_LOWER_HALF: Final = 1 << 47

FAULT_PRESENT: Final = 1 << 0
FAULT_WRITE: Final = 1 << 1
FAULT_USER: Final = 1 << 2
FAULT_FETCH: Final = 1 << 4


class _TlbWatch(ctypes.Structure):
    """The record that the native hook works on; layout as in native/hooks.c."""

    _fields_ = (
        ("slow", ctypes.c_void_p),
        ("read_batch", ctypes.c_uint64),
        ("ids", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("registers", ctypes.c_uint64),
        ("private_view", ctypes.c_uint64),
        ("frames", ctypes.c_uint64),
        ("bit", ctypes.c_uint64),
        ("private_bit", ctypes.c_uint64),
        ("ram_bit", ctypes.c_uint64),
        ("ram_private_bit", ctypes.c_uint64),
        ("rights", ctypes.c_uint64),
        ("fetches_private", ctypes.c_uint64),
        ("held", ctypes.c_uint64),
    )


def _refuses(entry: int, code: int, cr0: int) -> bool:
    """Whether a present leaf refuses the access that the page-fault error code `code` is of."""
    is_user = bool(code & FAULT_USER)
    writable = bool(entry & PTE_RW) or (not is_user and not cr0 & CR0_WP)
    return (
        (bool(code & FAULT_WRITE) and not writable)
        or (is_user and not entry & PTE_USER)
        or (bool(code & FAULT_FETCH) and bool(entry & PTE_NX))
    )


class TlbWalker:
    """Fills the emulator's TLB from guest page tables with a literal view `bit`.

    `fault` is (vector, error code, address) of the last refused access, None when the last one was
    granted: a page fault, or #GP(0) for an address that is not canonical. `closed` likewise is
    the fault of an access to a view that `gates` keep closed.
    """

    def __init__(self, engine: Engine, ram: GuestRam, bit: ViewBit, code: HostCode) -> None:
        self._engine = engine
        self._ram = ram
        self._bit = bit
        self.fault: tuple[int, int, int] | None = None
        self._gates: ViewGates | None = None
        self._held: Translations | None = None
        self.closed: ViewFault | None = None
        self.errors: list[BaseException] = []
        engine.use_virtual_tlb()
        self._slow = TlbHook(self._on_fill)
        self._registers = RegisterBatch(engine, ("cr0", "cr3", "cs"))
        self._watch = _TlbWatch()
        if code.available and type(ram) is GuestRam:
            self._fill_watch()
            engine.add_native_hook(HOOK_TLB_FILL, code.tlb_hook, self._watch)
        else:
            engine.add_hook(HOOK_TLB_FILL, self._slow)

    def _fill_watch(self) -> None:
        watch = self._watch
        watch.slow = ctypes.cast(self._slow, ctypes.c_void_p)
        watch.read_batch = self._engine.function("uc_reg_read_batch")
        watch.ids, watch.values, watch.count = self._registers.addresses
        watch.registers = self._registers.values_address
        watch.private_view = self._ram.watch.private
        watch.frames = self._ram.frames
        watch.bit, watch.private_bit = self._bit.mask, self._bit.private
        watch.ram_bit, watch.ram_private_bit = self._ram.bit.mask, self._ram.bit.private

    @property
    def gates(self) -> ViewGates | None:
        """Which views are closed, if any can be."""
        return self._gates

    @gates.setter
    def gates(self, gates: ViewGates) -> None:
        self._gates = gates
        self._watch.rights = gates.rights_address
        self._watch.fetches_private = gates.fetches_private

    @property
    def held(self) -> Translations | None:
        """What vCPUs hold of earlier walks, if they keep it."""
        return self._held

    @held.setter
    def held(self, held: Translations) -> None:
        self._held = held
        self._watch.held = 1

    def take_refusal(self) -> tuple[int, int, int] | ViewFault | None:
        """`closed` or `fault` of the access that ended a run, once."""
        refusal = self.closed or self.fault
        self.closed = self.fault = None
        return refusal

    def _on_fill(self, _uc: object, gva: int, access: int, entry: object, _user: object) -> bool:
        try:
            return self._fill(gva, access, entry[0])  # type: ignore[index]
        except BaseException as error:
            self.errors.append(error)
            return False

    def _fill(self, gva: int, access: int, entry: TlbEntry) -> bool:
        read = self._engine.read
        cr0 = read(REGISTERS["cr0"])
        self.closed = None
        if not cr0 & CR0_PG:
            entry.paddr = gva & ~0xFFF
            entry.perms = _READ | _WRITE | _EXEC
            return True
        if gva + _LOWER_HALF & U64_MASK >= 2 * _LOWER_HALF:
            self.fault = (VECTOR_GP, 0, gva)
            return False
        is_write = access == uc_const.UC_MEM_WRITE
        is_fetch = access == uc_const.UC_MEM_FETCH
        is_user = read(REGISTERS["cs"]) & 3 == 3
        code = (
            (FAULT_WRITE if is_write else 0)
            | (FAULT_USER if is_user else 0)
            | (FAULT_FETCH if is_fetch else 0)
        )
        leaf = None if self._held is None else self._held.find(gva)
        if leaf is None or _refuses(leaf.entry, code, cr0):
            leaf = self._walked(gva, code, cr0)
            if leaf is None:
                return False
        writable = bool(leaf.entry & PTE_RW) or (not is_user and not cr0 & CR0_WP)
        size = LEAF_SIZES[leaf.level]
        base = leaf.entry & 0x000F_FFFF_FFFF_F000 & ~self._bit.mask & ~(size - 1)
        gpa = base | gva & (size - 1) & ~0xFFF
        is_private = self._bit.is_private(leaf.entry)
        perms = _READ | (_WRITE if writable else 0) | (0 if leaf.entry & PTE_NX else _EXEC)
        if self.gates is not None and gpa >> PAGE_SHIFT < self.gates.frames:
            kind = "write" if is_write else "fetch" if is_fetch else "read"
            passed = self._pass(self.gates, kind, gva, gpa, is_private)
            if not passed:
                return False
            perms &= passed
            self.gates.mark(gpa >> PAGE_SHIFT)
        entry.paddr = self._ram.bit.select(gpa, is_private)
        entry.perms = perms
        self.fault = None
        return True

    def _walked(self, gva: int, code: int, cr0: int) -> Leaf | None:
        """The leaf of `gva` by the tables as they are now; None where the access faults, or may not
        read the tables."""
        root = Gpa(self._engine.read(REGISTERS["cr3"]) & ~0xFFF & ~self._bit.mask)
        tables: list[Gpa] | None = None if self.gates is None else []
        leaf = walk(self._ram, self._bit.mask, root, Gva(gva), tables)
        if tables and not self._may_walk(gva, tables):
            return None
        if self._held is not None:
            self._held.drop(Gva(gva))
        if not leaf.entry & PTE_PRESENT or leaf.level > 3:
            self.fault = (VECTOR_PF, code, gva)
            return None
        if _refuses(leaf.entry, code, cr0):
            self.fault = (VECTOR_PF, code | FAULT_PRESENT, gva)
            return None
        if self._held is not None:
            self._held.hold(leaf)
        return leaf

    def _may_walk(self, gva: int, tables: list[Gpa]) -> bool:
        """Whether the page walk reaches the private view of every table it read."""
        gates = self.gates
        for table in tables:
            if gates is None:
                continue
            if not gates.passes(table >> PAGE_SHIFT, True, "walk"):
                return self._refuse("walk", gva, table, True)
            gates.mark(table >> PAGE_SHIFT)
        return True

    def _pass(self, gates: ViewGates, kind: str, gva: int, gpa: int, is_private: bool) -> int:
        """The rights that the gates leave to a translation, 0 for an access that they refuse."""
        gfn = gpa >> PAGE_SHIFT
        fetched = is_private or gates.fetches_private
        seen = fetched if kind == "fetch" else is_private
        if not gates.passes(gfn, seen, kind):
            self._refuse(kind, gva, gpa, seen)
            return 0
        can_write = gates.passes(gfn, is_private, "write")
        can_fetch = gates.passes(gfn, fetched, "fetch")
        return _READ | (_WRITE if can_write else 0) | (_EXEC if can_fetch else 0)

    def _refuse(self, kind: str, gva: int, gpa: int, is_private: bool) -> bool:
        self.fault = None
        self.closed = ViewFault(kind, gva, gpa, is_private, 0)
        return False
