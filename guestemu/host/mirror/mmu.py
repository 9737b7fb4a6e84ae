# SPDX-License-Identifier: GPL-2.0-or-later
"""Address translation of a mirror's vCPU: its own page tables, then its VM's memory slots.

The literal C-bit of the processor is read from CR3 and the entries, wherever it is; GPAs may be as
high as a proposal wants them (2^42, say), since only RAM addresses reach the emulator. What is left
out: accessed and dirty bits, USER, reserved bits.

A page full of x87 code and its like is not executable: Unicorn 2.1.4 writes past a table of its
own where about 240 such instructions stand in a row (unicorn pull requests 2307 and 2372), and the
guest can fill a handler's pages with any byte. No handler is made of them.
"""

from __future__ import annotations

from typing import Final

import msgspec
from unicorn import unicorn_const as uc_const

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U64_MASK, Gpa
from guestemu.abi.x86 import PTE_ADDRESS_MASK, PTE_NX, PTE_PRESENT, PTE_PSE, PTE_RW
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.machine.callbacks import TlbEntry, TlbHook
from guestemu.machine.engine import HOOK_TLB_FILL, REGISTERS, Engine

_READ: Final = uc_const.UC_PROT_READ
_WRITE: Final = uc_const.UC_PROT_WRITE
_EXEC: Final = uc_const.UC_PROT_EXEC
_LOWER_HALF: Final = 1 << 47
_TOP_LEVEL: Final = 4
_X87: Final = bytes(range(0xD8, 0xE0))
_EXTRQ: Final = b"\x0f\x78"
_HALF: Final = tuple(bytes((0x0F, second)) for second in (0x20, 0x38, 0x3A, 0x70, 0xC6))
_MAX_KEPT: Final = 400
"""Temporaries that Unicorn may keep for the code of one page. It has room for some 470, and keeps
two for an x87 instruction and EXTRQ, one for some of SSE and for a read of a control register."""


class NotMapped(msgspec.Struct, frozen=True):
    """No translation: an entry at `gva` is absent or forbids the access."""

    gva: int


class NoSlot(msgspec.Struct, frozen=True):
    """A GPA, of the access or of a page table, is in no slot."""

    mirror_gpa: int


class Translation(msgspec.Struct, frozen=True):
    """RAM address (bytes) of an access, whether it has C=1, and what the entry allows."""

    ram_addr: int
    is_private: bool
    writable: bool
    executable: bool


class MirrorMmu:
    """Fills the TLB of `engine`. `fault` is why the last access was refused, None if it was not;
    `cbit_mask` is the processor's."""

    def __init__(self, engine: Engine, vm: SharedRamMirror, cbit_mask: int) -> None:
        self._engine = engine
        self._vm = vm
        self._cbit_mask = cbit_mask
        self.fault: NotMapped | NoSlot | None = None
        self.errors: list[BaseException] = []
        engine.use_virtual_tlb()
        engine.add_hook(HOOK_TLB_FILL, TlbHook(self._on_fill))

    def translate(self, cr3: int, gva: int) -> Translation | NotMapped | NoSlot:
        """Walks the tables at `cr3` for `gva`. A table is read through the view that the C-bit of
        the pointer to it selects."""
        if gva + _LOWER_HALF & U64_MASK >= 2 * _LOWER_HALF:
            return NotMapped(gva)
        vm = self._vm
        entry, shift = cr3, PAGE_SHIFT + 9 * _TOP_LEVEL
        writable = executable = True
        while shift > PAGE_SHIFT:
            table = entry & PTE_ADDRESS_MASK & ~self._cbit_mask
            shift -= 9
            where = vm.ram_addr_of(table + 8 * (gva >> shift & 0x1FF))
            if where is None:
                return NoSlot(table)
            data = vm.ram.read(Gpa(where), 8, private=bool(entry & self._cbit_mask))
            entry = int.from_bytes(data, "little")
            if not entry & PTE_PRESENT:
                return NotMapped(gva)
            writable &= bool(entry & PTE_RW)
            executable &= not entry & PTE_NX
            if entry & PTE_PSE and PAGE_SHIFT < shift < PAGE_SHIFT + 27:
                break
        size = 1 << shift
        base = entry & PTE_ADDRESS_MASK & ~self._cbit_mask & ~(size - 1)
        gpa = base | gva & size - 1
        ram_addr = vm.ram_addr_of(gpa)
        if ram_addr is None:
            return NoSlot(gpa)
        return Translation(ram_addr, bool(entry & self._cbit_mask), writable, executable)

    def _on_fill(self, _uc: object, gva: int, access: int, entry: object, _user: object) -> bool:
        try:
            return self._fill(gva, access, entry[0])  # type: ignore[index]
        except BaseException as error:
            self.errors.append(error)
            return False

    def _fill(self, gva: int, access: int, entry: TlbEntry) -> bool:
        found = self.translate(self._engine.read(REGISTERS["cr3"]), gva)
        if not isinstance(found, Translation):
            self.fault = found
            return False
        is_fetch = access == uc_const.UC_MEM_FETCH
        if (access == uc_const.UC_MEM_WRITE and not found.writable) or (
            is_fetch and not (found.executable and self._can_run(found))
        ):
            self.fault = NotMapped(gva)
            return False
        view = self._vm.ram.cbit_mask if found.is_private else 0
        entry.paddr = found.ram_addr & ~PAGE_MASK | view
        entry.perms = _READ | (_WRITE if found.writable else 0) | (_EXEC if is_fetch else 0)
        self.fault = None
        return True

    def _can_run(self, found: Translation) -> bool:
        page = Gpa(found.ram_addr & ~PAGE_MASK)
        code = self._vm.ram.read(page, PAGE_SIZE, private=found.is_private)
        two = len(code) - len(code.translate(None, _X87)) + code.count(_EXTRQ)
        return 2 * two + sum(map(code.count, _HALF)) <= _MAX_KEPT
