# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the emulator keeps the error code of an exception, found by experiment.

Unicorn reports the vector of an exception and nothing else, and it leaves the exception marked as
being delivered, so that the next #PF would be reported as a double fault and a third would stop the
run without a word. Both fields are inside the saved context. Their offsets belong to one build of
the library, so they are discovered: a small CPU takes page faults with known error codes, and the
words of the context that follow them are the ones.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from functools import cache
from typing import Final

import msgspec

from guestemu.abi.errors import EngineError
from guestemu.abi.msrs import EFER_LMA, EFER_LME, MSR_EFER
from guestemu.abi.x86 import (
    CR0_ET,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    PTE_RW,
    VECTOR_PF,
)
from guestemu.machine.callbacks import InterruptHook
from guestemu.machine.engine import HOOK_INTR, REGISTERS, Context, Engine

_NONE: Final = 0xFFFFFFFF
_TABLE: Final = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY
_READ_ONLY: Final = PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY
_LOAD: Final = b"\xf4\x48\x8b\x03\xf4"  # hlt; mov rax, [rbx]; hlt
_STORE: Final = b"\xf4\x48\x89\x03\xf4"  # hlt; mov [rbx], rax; hlt
_CODE_AT: Final = 0x5000


class ExceptionLayout(msgspec.Struct, frozen=True):
    """Byte offsets of two 32-bit words in a raw context."""

    old_exception: int
    error_code: int


@cache
def exception_layout() -> ExceptionLayout:
    """The offsets for the library that is loaded; `EngineError` if none fit."""
    clean = _words_after(b"\xf4", 0, 0)
    no_read = _words_after(_LOAD, 0x7000, 1)
    no_write = _words_after(_STORE, 0x7000, 1)
    read_only = _words_after(_STORE, 0x6000, 1)
    old = [
        i
        for i in range(len(clean))
        if clean[i] == _NONE and no_read[i] == no_write[i] == read_only[i] == VECTOR_PF
    ]
    code = [
        i
        for i in range(len(clean))
        if (clean[i], no_read[i], no_write[i], read_only[i]) == (0, 0, 2, 3)
    ]
    if len(old) != 1 or len(code) != 1:
        raise EngineError(
            f"this build of libunicorn keeps exceptions elsewhere ({len(old)} and {len(code)} "
            "candidates in its context); use unicorn 2.1.x"
        )
    return ExceptionLayout(4 * old[0], 4 * code[0])


def _words_after(code: bytes, address: int, skip: int) -> tuple[int, ...]:
    """The 32-bit words of the context after `code`, entered `skip` bytes in, with RBX = address."""
    engine = Engine()
    ram = mmap.mmap(-1, 0x8000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for index in range(3):
        struct.pack_into("<Q", ram, 0x1000 * (index + 1), 0x1000 * (index + 2) | _TABLE)
    for page in range(7):
        flags = _READ_ONLY if page == 6 else _TABLE
        struct.pack_into("<Q", ram, 0x4000 + 8 * page, page << 12 | flags)
    ram[_CODE_AT : _CODE_AT + len(code)] = code
    address_of_ram = _host_address(ram)
    engine.map(0, 0x8000, address_of_ram)
    engine.write(REGISTERS["cr4"], CR4_PAE)
    engine.write(REGISTERS["cr3"], 0x1000)
    engine.write_msr(MSR_EFER, EFER_LME | EFER_LMA)
    engine.write(REGISTERS["cr0"], CR0_PG | CR0_PE | CR0_WP | CR0_ET)
    engine.write(REGISTERS["rbx"], address)
    engine.add_hook(HOOK_INTR, InterruptHook(lambda _uc, _vector, _user: engine.stop()))
    engine.start(_CODE_AT + skip)
    context = Context(engine)
    words = struct.unpack_from(f"<{len(context.bytes) // 4}I", context.bytes)
    engine.close()
    return words


def _host_address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
