# SPDX-License-Identifier: GPL-2.0-or-later
"""CLFLUSH and WBINVD on a machine with an incoherent cache.

The emulator takes them for no-operations and has no hook for them, so code hooks stand at their
addresses, as with RDMSR and WRMSR. A search for the bytes is enough: a match that is not an
instruction is never executed as one. The line that is flushed is that of the alias which the page
tables name now; a stale translation of the TLB is not followed. CLFLUSHOPT is undefined on the
emulated CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import capstone
import msgspec
from capstone import x86_const

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, Gpa
from guestemu.machine.cache import LINE_SIZE, CachedRam
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE, REGISTERS, Engine
from guestemu.machine.hooks import CpuHooks

_FLUSH: Final = re.compile(rb"(?=([\x40-\x4f]?\x0f\xae[\x38-\x3f\x78-\x7f\xb8-\xbf]))", re.DOTALL)
_WBINVD: Final = re.compile(rb"\x0f\x09", re.DOTALL)
_MAX_LENGTH: Final = 15
_MASK: Final = (1 << 64) - 1


class _Operand(msgspec.Struct, frozen=True):
    """A memory operand: registers by name (empty: none), scale, displacement."""

    base: str
    index: str
    scale: int
    displacement: int


class CacheInstructions:
    """Carries them out on `ram`, for code that was passed to `watch`."""

    def __init__(self, engine: Engine, hooks: CpuHooks, ram: CachedRam) -> None:
        self._engine = engine
        self._hooks = hooks
        self._ram = ram
        self._operands: dict[int, _Operand] = {}
        self._last = (0, 0)
        self._translation: tuple[Gpa, bool] | None = None
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.detail = True

    def watch(self, code: bytes, address: int) -> None:
        """64-bit `code` at the linear `address`; before it first runs."""
        for match in _WBINVD.finditer(code):
            self._hook(address + match.start(), CodeHook(self._on_wbinvd))
        for match in _FLUSH.finditer(code):
            operand = self._operand(code[match.start() :][:_MAX_LENGTH])
            if operand is not None:
                site = address + match.start()
                self._operands[site] = operand
                self._hook(site, CodeHook(self._on_flush))

    def _hook(self, site: int, hook: Callable[..., object]) -> None:
        self._engine.add_hook(HOOK_CODE, hook, begin=site, end=site)

    def _operand(self, code: bytes) -> _Operand | None:
        for instruction in self._decoder.disasm(code, 0, 1):
            if instruction.id == x86_const.X86_INS_CLFLUSH:
                memory = instruction.operands[0].mem
                if instruction.reg_name(memory.base) == "rip":
                    return _Operand("rip", "", 1, memory.disp + instruction.size)
                return _Operand(
                    instruction.reg_name(memory.base) or "",
                    instruction.reg_name(memory.index) or "",
                    memory.scale,
                    memory.disp,
                )
        return None

    def _on_wbinvd(self, _uc: object, _address: int, _size: int, _user: object) -> None:
        try:
            self._ram.write_back_all()
        except BaseException as error:
            self._hooks.errors.append(error)
            self._engine.stop()

    def _on_flush(self, _uc: object, address: int, _size: int, _user: object) -> None:
        try:
            operand = self._operands[address]
            gva = operand.displacement
            for name, factor in ((operand.base, 1), (operand.index, operand.scale)):
                if name == "rip":
                    gva += address
                elif name:
                    gva += self._engine.read(REGISTERS[name]) * factor
            self._flush(gva & _MASK)
        except BaseException as error:
            self._hooks.errors.append(error)
            self._engine.stop()

    def _flush(self, gva: int) -> None:
        writes = self._ram.table_write_count
        if (gva - LINE_SIZE, writes) == self._last and gva & PAGE_MASK >= LINE_SIZE:
            found = self._translation  # the next line of a loop over a page
        else:
            vcpu = self._hooks.vcpu
            found = None if vcpu is None else vcpu.translate(gva)
        self._last = gva, writes
        self._translation = found
        if found is not None and found[0] >> PAGE_SHIFT < self._ram.frames:
            gpa = found[0] & ~PAGE_MASK | gva & PAGE_MASK & -LINE_SIZE
            self._ram.flush_line(gpa, found[1])
