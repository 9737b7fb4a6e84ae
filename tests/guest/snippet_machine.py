# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare Unicorn machine for the snippet tests, without guestemu's engine under it.

RAM is two buffers, one per view: the private one appears at GPA | C. Page tables and the snippet
are in the private view. What a mapping reads therefore shows which C-bit it has.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass, field

from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_HOOK_INSN_INVALID, UC_HOOK_INTR, UC_MODE_64, Uc
from unicorn import x86_const as x86

from guestemu.guest.snippet.elf import SnippetImage, load_snippet
from guestemu.guest.snippet.info import InfoBlock

C = 1 << 39
PAGE, PMD, PUD = 1 << 12, 1 << 21, 1 << 30
RAM = 16 << 20
BASE = 0xFFFF_8880_0000_0000
VMAP = 0xFFFF_C900_0000_0000
SCRATCH = 0xFFFF_FFFF_FF40_0000
CODE64, DATA, GDT = 8, 16, 0x3000
STACK, TABLES, POOL = 0x3F000, 0x40000, 0x80000
POOL_PAGES = 64
D, L, G = 0x40_0000, 0x80_0000, 2 * PUD
ADDRESS = 0x000F_FFFF_FFFF_F000 & ~C
LEAF, TABLE, PSE = 0x63, 0x63, 0x80
_ARGUMENTS = (x86.UC_X86_REG_RDI, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RCX)
_CALL = (
    x86.UC_X86_REG_RAX,
    x86.UC_X86_REG_RBX,
    x86.UC_X86_REG_RCX,
    x86.UC_X86_REG_RDX,
)
_KEPT = tuple(
    getattr(x86, f"UC_X86_REG_{name}") for name in ("RBX", "RBP", "R12", "R13", "R14", "R15")
)
_HAS_CODE = {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}


def s32(value: int) -> int:
    return ctypes.c_int32(value).value


class Hang(Exception):
    """The call did not come back within its instructions."""


@dataclass
class Machine:
    generation: str = "6.1"
    answer: int = 0
    fail_msr: bool = False
    calls: list[tuple[int, ...]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    msrs: list[tuple[int, int]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    instructions: int = 0
    wants_trace: bool = False

    def __post_init__(self) -> None:
        self.image: SnippetImage = load_snippet(self.generation)
        self.shared = mmap.mmap(-1, RAM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.private = mmap.mmap(-1, RAM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.uc = Uc(UC_ARCH_X86, UC_MODE_64)
        for gpa, buffer in ((0, self.shared), (C, self.private)):
            self.uc.mem_map_ptr(gpa, RAM, 7, ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
        for segment in self.image.segments:
            end = segment.address + len(segment.data)
            self.private[segment.address : end] = segment.data
        self.next_table = TABLES + PAGE
        self._map_memory()
        self.info = InfoBlock(self, self.image.info)
        for name, value in {
            "page_offset_base": BASE,
            "cbit_mask": C,
            "pgd": BASE + TABLES,
            "max_pfn": 16 << 18,
            "pt_pool": POOL,
            "pt_pool_left": POOL_PAGES,
            "scratch_source": SCRATCH,
            "scratch_target": SCRATCH + PAGE,
            "coherent": 1,
            "notify_enabled": 1,
        }.items():
            self.info.write(name, value)
        self._start_cpu()

    # Memory -----------------------------------------------------------------------------------

    def read_u64(self, gpa: int) -> int:
        return struct.unpack_from("<Q", self.private, gpa)[0]

    def write_u64(self, gpa: int, value: int) -> None:
        struct.pack_into("<Q", self.private, gpa, value)

    def _entry_gpa(self, va: int, level: int) -> int:
        table = TABLES
        for current in range(4, level, -1):
            gpa = table + 8 * (va >> (12 + 9 * (current - 1)) & 511)
            if not self.read_u64(gpa):
                self.write_u64(gpa, self.next_table | TABLE | C)
                self.next_table += PAGE
                assert self.next_table <= POOL
            table = self.read_u64(gpa) & ADDRESS
        return table + 8 * (va >> (12 + 9 * (level - 1)) & 511)

    def map(self, va: int, gpa: int, level: int = 1, attributes: int = LEAF | C) -> None:
        self.write_u64(self._entry_gpa(va, level), gpa | attributes | (PSE if level > 1 else 0))

    def _map_memory(self) -> None:
        for gpa in range(0, 0x40000, PAGE):
            self.map(gpa, gpa)
        for gpa in range(0, L, PAGE):
            self.map(BASE + gpa, gpa)
        for gpa in range(L, RAM, PMD):
            self.map(BASE + gpa, gpa, 2)
        for gpa in range(G, G + 4 * PUD, PUD):
            self.map(BASE + gpa, gpa, 3)
        for page in range(64):
            self.map(VMAP + page * PAGE, D + page * PAGE)
        self._entry_gpa(SCRATCH, 1)

    def leaf(self, va: int) -> tuple[int, int]:
        """(entry, level) of the leaf or of the first entry that is not a table."""
        table = TABLES
        for level in (4, 3, 2, 1):
            entry = self.read_u64(table + 8 * (va >> (12 + 9 * (level - 1)) & 511))
            if level == 1 or not entry & 1 or entry & PSE:
                break
            table = entry & ADDRESS
        return entry, level

    def is_private(self, va: int) -> bool:
        entry, _ = self.leaf(va)
        return bool(entry & C)

    def set_entry(self, va: int, value: int) -> None:
        """Edits a 4 KiB entry from outside, with the TLB flush that this needs."""
        self.write_u64(self._entry_gpa(va, 1), value)
        self.uc.reg_write(x86.UC_X86_REG_CR3, TABLES | C)

    # CPU --------------------------------------------------------------------------------------

    def _start_cpu(self) -> None:
        uc = self.uc
        uc.reg_write(x86.UC_X86_REG_CR4, 0x6A0)
        uc.reg_write(x86.UC_X86_REG_CR3, TABLES | C)
        uc.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, 0xD01))
        uc.reg_write(x86.UC_X86_REG_CR0, 0x80050033)
        for selector, descriptor in ((CODE64, 0xAF_9B00_0000_FFFF), (DATA, 0xCF_9300_0000_FFFF)):
            self.write_u64(GDT + selector, descriptor)
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, GDT, 0x17, 0))
        uc.hook_add(UC_HOOK_INSN_INVALID, self._on_invalid)
        uc.hook_add(UC_HOOK_INTR, self._on_exception)
        for site in self.image.msr_sites:
            uc.hook_add(UC_HOOK_CODE, self._on_msr, begin=site, end=site)
        if self.wants_trace:
            uc.hook_add(UC_HOOK_CODE, self._on_instruction)

    def _on_instruction(self, uc: Uc, address: int, size: int, _: object) -> None:
        self.instructions += 1
        name = {
            **dict.fromkeys(self.image.flush_sites, "tlb flush"),
            **dict.fromkeys(self.image.pte_sites, "entry"),
            **dict.fromkeys(self.image.vmmcall_sites, "hypercall"),
        }.get(address)
        code = self.private[address : address + size]
        if name == "tlb flush" and code[:2] == b"\x0f\x22":
            name = "global flush"
        if code[:2] == b"\x0f\xae" and code[2] >> 3 & 7 == 7 and code[2] < 0xC0:
            name = "clflush"
        if name:
            self.trace.append(name)

    def _on_invalid(self, uc: Uc, _: object) -> bool:
        rip = uc.reg_read(x86.UC_X86_REG_RIP)
        code = self.private[rip : rip + 3]
        if code in {b"\x0f\x01\xd9", b"\x0f\x01\xc1"}:
            self.calls.append(tuple(uc.reg_read(register) for register in _CALL))
            uc.reg_write(x86.UC_X86_REG_RAX, self.answer & (1 << 64) - 1)
            uc.reg_write(x86.UC_X86_REG_RIP, rip + 3)
        elif rip in self.image.warnings:
            self.warnings.append(self.image.warnings[rip])
            uc.reg_write(x86.UC_X86_REG_RIP, rip + 2)
        else:
            self._deliver(6)
        return True

    def _on_exception(self, uc: Uc, vector: int, _: object) -> None:
        # The emulator reports the fault and goes nowhere: run() delivers it.
        self._pending = vector
        uc.emu_stop()

    def _on_msr(self, uc: Uc, rip: int, size: int, _: object) -> None:
        value = uc.reg_read(x86.UC_X86_REG_EAX)
        self.msrs.append((uc.reg_read(x86.UC_X86_REG_ECX), value))
        if self.fail_msr:
            self._deliver(13)

    def _deliver(self, vector: int, error_code: int = 0) -> None:
        uc = self.uc
        rsp = uc.reg_read(x86.UC_X86_REG_RSP)
        rip, flags = uc.reg_read(x86.UC_X86_REG_RIP), uc.reg_read(x86.UC_X86_REG_EFLAGS)
        words = [rip, CODE64, flags, rsp, DATA]
        if vector in _HAS_CODE:
            words.insert(0, error_code)
        top = (rsp & ~0xF) - 8 * len(words)
        self.private[top : top + 8 * len(words)] = struct.pack(f"<{len(words)}Q", *words)
        uc.reg_write(x86.UC_X86_REG_RSP, top)
        uc.reg_write(x86.UC_X86_REG_RIP, self.image.exceptions[vector])

    def call(self, function: str, *arguments: int, limit: int = 0) -> int:
        """RAX of the function; `Hang` after `limit` instructions; checks the calling convention."""
        uc = self.uc
        self.write_u64(STACK - 8, self.image.address("guest_return"))
        uc.reg_write(x86.UC_X86_REG_RSP, STACK - 8)
        uc.reg_write(x86.UC_X86_REG_EFLAGS, 2)
        for register, value in zip(_ARGUMENTS, arguments, strict=False):
            uc.reg_write(register, value & (1 << 64) - 1)
        for index, register in enumerate(_KEPT):
            uc.reg_write(register, 0x1111 * (index + 1))
        self._pending = -1
        uc.emu_start(self.image.address(function), 0, count=limit)
        while self._pending >= 0:
            vector, self._pending = self._pending, -1
            self._deliver(vector)
            uc.emu_start(uc.reg_read(x86.UC_X86_REG_RIP), 0)
        rip = uc.reg_read(x86.UC_X86_REG_RIP)
        if rip == self.image.address("guest_oops") + 1:
            raise RuntimeError(f"oops {self.info.read('oops_vector')}")
        if rip != self.image.address("guest_return") + 1:
            raise Hang(f"at {rip:#x}")
        for index, register in enumerate(_KEPT):
            assert uc.reg_read(register) == 0x1111 * (index + 1)
        assert uc.reg_read(x86.UC_X86_REG_RSP) == STACK
        return uc.reg_read(x86.UC_X86_REG_RAX)

    def decrypt(self, va: int, pages: int, limit: int = 0) -> int:
        return s32(self.call("set_memory_decrypted", va, pages, limit=limit))

    def encrypt(self, va: int, pages: int, limit: int = 0) -> int:
        return s32(self.call("set_memory_encrypted", va, pages, limit=limit))

    def take(self) -> list[tuple[int, ...]]:
        """The hypercalls since the last look."""
        calls, self.calls = self.calls, []
        return calls
