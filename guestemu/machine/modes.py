# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved contexts of every CPU mode and privilege level.

Each is entered once, at boot, by guest instructions (native/modes.S), and kept; a vCPU then starts
in any of them by restoring a context, and no program sees which modes ran before it. `build_tables`
makes the descriptor tables that this needs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from guestemu.abi.addresses import Gpa
from guestemu.abi.errors import EngineError
from guestemu.abi.msrs import EFER_LMA, EFER_LME, EFER_NX, EFER_SCE, MSR_EFER
from guestemu.abi.x86 import (
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CR4_PGE,
    RFLAGS_FIXED,
    RFLAGS_IOPL3,
    Mode,
)
from guestemu.machine import layout
from guestemu.machine.engine import ERR_INSN_INVALID, REGISTERS, Context, Engine
from guestemu.machine.memory import GuestRam
from guestemu.machine.native import load_blob

LONG_MODE_CR0 = CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE
LONG_MODE_CR4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT
LONG_MODE_EFER = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX

_UD2 = b"\x0f\x0b"
_PRESENT_INTERRUPT_GATE = 0x8E00
_ALL_VECTORS = 256


def _segment(access: int, flags: int, limit: int = 0xFFFFF) -> int:
    return (limit & 0xFFFF) | access << 40 | (limit >> 16 & 0xF) << 48 | flags << 52


def _tss_descriptor(base: int, access: int) -> int:
    return 0x67 | (base & 0xFFFFFF) << 16 | access << 40 | (base >> 24 & 0xFF) << 56


def build_tables(ram: GuestRam, vectors: Mapping[int, int]) -> None:
    """Writes GDT, both TSS, and for 64-bit, 32-bit and real mode a vector table.

    `vectors` gives the address of a 64-bit handler by vector; vectors that it lacks, and every
    vector of the legacy modes, go to `layout.HANDLERS + 16 * vector`.
    """
    gdt = [0] * 18
    gdt[2] = _segment(0x93, 0xC)
    for cpl, (code64, code32, data) in enumerate(
        zip(layout.CODE64_BY_CPL, layout.CODE32_BY_CPL, layout.DATA_BY_CPL, strict=True)
    ):
        gdt[code64 >> 3] = _segment(0x9B | cpl << 5, 0xA)
        gdt[code32 >> 3] = _segment(0x9B | cpl << 5, 0xC)
        gdt[data >> 3] = _segment(0x93 | cpl << 5, 0xC)
    gdt[layout.TSS64_SELECTOR >> 3] = _tss_descriptor(layout.TSS64, 0x8B)
    gdt[15] = _segment(0x9B, 0, 0xFFFF)
    gdt[16] = _segment(0x93, 0, 0xFFFF)
    gdt[layout.TSS32_SELECTOR >> 3] = _tss_descriptor(layout.TSS32, 0x8B)
    ram.write(Gpa(layout.GDT), struct.pack("<18Q", *gdt))
    stack = layout.KERNEL_STACK
    ram.write(Gpa(layout.TSS64 + 4), struct.pack("<3Q", stack, stack, stack))
    ram.write(Gpa(layout.TSS64 + 102), b"\xff\xff")
    ram.write(Gpa(layout.TSS32 + 4), struct.pack("<2I", stack, layout.DATA))
    ram.write(Gpa(layout.TSS32 + 102), b"\xff\xff")
    for vector in range(layout.VECTORS):
        default = layout.HANDLERS + 16 * vector
        _write_gates(ram, vector, vectors.get(vector, default), default)


def _gate64(handler: int) -> bytes:
    return struct.pack(
        "<HHHHII",
        handler & 0xFFFF,
        layout.CODE64,
        _PRESENT_INTERRUPT_GATE,
        handler >> 16 & 0xFFFF,
        handler >> 32,
        0,
    )


def _write_gates(ram: GuestRam, vector: int, handler64: int, handler32: int) -> None:
    ram.write(Gpa(layout.IDT64 + 16 * vector), _gate64(handler64))
    gate32 = struct.pack(
        "<HHHH", handler32 & 0xFFFF, layout.CODE32, _PRESENT_INTERRUPT_GATE, handler32 >> 16
    )
    ram.write(Gpa(layout.IDT32 + 8 * vector), gate32)
    ram.write(Gpa(layout.REAL_VECTORS + 4 * vector), struct.pack("<HH", handler32, 0))


class ModeTable:
    """One saved context per (mode, CPL), for one engine and one top-level page table.

    The mode switches count as blocks: the budget of the block hook must allow some hundreds.
    """

    def __init__(self, engine: Engine, ram: GuestRam, cr3: int) -> None:
        self._engine = engine
        self._cr3 = cr3
        self._blob = load_blob("modes")
        ram.write(Gpa(self._blob.base), self._blob.code)
        ram.write(Gpa(layout.LANDING), _UD2)
        self._power_on = Context(engine)
        self._contexts: dict[tuple[Mode, int], Context] = {}
        for mode in Mode:
            for cpl in range(1 if mode is Mode.REAL16 else 4):
                self._enter(mode, cpl)
                self._contexts[mode, cpl] = Context(engine)
        self.context(Mode.LONG64, 0).restore()
        engine.flush_tlb()

    def context(self, mode: Mode, cpl: int) -> Context:
        """The context of `mode` at `cpl`: flat segments, interrupts off, IOPL 3 above CPL 0.

        RIP, RSP and the general registers are for the caller to set. `KeyError` for real mode above
        CPL 0, which does not exist.
        """
        return self._contexts[mode, cpl]

    def route_interrupts(self, ram: GuestRam, handler: int) -> None:
        """Vectors from 32 on go to `handler` in 64-bit mode at CPL 0; elsewhere, and until this is
        called, they are behind the end of the table."""
        gates = range(layout.VECTORS, _ALL_VECTORS)
        ram.write(Gpa(layout.IDT64 + 16 * layout.VECTORS), _gate64(handler) * len(gates))
        context = self.context(Mode.LONG64, 0)
        context.restore()
        self._engine.write_table("idtr", layout.IDT64, 16 * _ALL_VECTORS - 1)
        context.save()
        self._engine.flush_tlb()

    def _enter(self, mode: Mode, cpl: int) -> None:
        engine = self._engine
        self._power_on.restore()
        engine.write(REGISTERS["cr0"], CR0_PE | CR0_ET)
        engine.write(REGISTERS["cr4"], LONG_MODE_CR4)
        engine.write(REGISTERS["cr3"], self._cr3)
        engine.write_msr(MSR_EFER, LONG_MODE_EFER)
        engine.write(REGISTERS["cr0"], LONG_MODE_CR0)
        engine.write_table("gdtr", layout.GDT, layout.GDT_LIMIT)
        engine.flush_tlb()
        self._run("enter_long", layout.CODE64, layout.DATA, 0)
        if (mode, cpl) != (Mode.LONG64, 0):
            codes = layout.CODE64_BY_CPL if mode is Mode.LONG64 else layout.CODE32_BY_CPL
            entry = {Mode.PROT32: "enter_prot32", Mode.REAL16: "enter_real16"}.get(
                mode, "enter_long"
            )
            self._run(entry, codes[cpl], layout.DATA_BY_CPL[cpl], cpl)
        if mode in {Mode.LONG64, Mode.COMPAT32}:
            engine.write_table("idtr", layout.IDT64, 16 * layout.VECTORS - 1)
            engine.write_table("tr", layout.TSS64, 0x67, layout.TSS64_SELECTOR, 0x8B00)
        elif mode is Mode.PROT32:
            engine.write_table("idtr", layout.IDT32, 8 * layout.VECTORS - 1)
            engine.write_table("tr", layout.TSS32, 0x67, layout.TSS32_SELECTOR, 0x8B00)
        else:
            engine.write_table("idtr", layout.REAL_VECTORS, 0x3FF)

    def _run(self, entry: str, code: int, data: int, cpl: int) -> None:
        engine = self._engine
        flags = RFLAGS_FIXED | (RFLAGS_IOPL3 if cpl else 0)
        for name, value in (
            ("rsi", code),
            ("rdi", data),
            ("rdx", layout.MODE_STACK),
            ("rcx", layout.LANDING),
            ("rbx", flags),
            ("rsp", layout.MODE_STACK),
            ("rflags", RFLAGS_FIXED),
        ):
            engine.write(REGISTERS[name], value)
        code_of_end = engine.start(self._blob.symbols[entry])
        rip = engine.read(REGISTERS["rip"])
        if code_of_end != ERR_INSN_INVALID or rip != layout.LANDING:
            raise EngineError(
                f"mode switch {entry} (CPL {cpl}) ended at {rip:#x}, error {code_of_end}"
            )
