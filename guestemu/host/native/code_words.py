# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers in a native handler's machine code: what `pages == 77` compares with.

A campaign that has to guess 77 needs it among the values that it tries. Read are the immediates of
the instructions of guestemu_exit() and of what it calls inside of the same file, nearest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import capstone
from capstone import x86_const
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.elf import code_sections

_ENTRY: Final = "guestemu_exit"
_USES: Final = frozenset(
    ("cmp", "sub", "add", "and", "test", "mov", "movabs", "lea", "bt", "xor", "or")
)
"""Instructions in which a compiler leaves the operand of a comparison or of arithmetic."""

_MOST_FUNCTIONS: Final = 32
_MOST_INSTRUCTIONS: Final = 4096
_MOST: Final = 64
_MOST_BYTES: Final = 64 << 20
_LONGEST: Final = 15

_Section = tuple[int, bytes]


def numbers_of(path: Path) -> tuple[int, ...]:
    """The numbers of the ELF file at `path`, unsigned, 64 bits; empty where the file is none for
    x86-64, or does not have the function."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return ()
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf["e_machine"] != "EM_X86_64":
                return ()
            entry, sections = _entry_of(elf), list(code_sections(elf.iter_sections()))
    except (OSError, ELFError, ValueError, KeyError, UnicodeError):
        return ()
    return () if entry is None else tuple(dict.fromkeys(_walk(entry, sections)))[:_MOST]


def _entry_of(elf: ELFFile) -> int | None:
    for section in elf.iter_sections():
        if isinstance(section, SymbolTableSection):
            for symbol in section.get_symbol_by_name(_ENTRY) or ():
                if symbol["st_value"]:
                    return int(symbol["st_value"])
    return None


def _walk(entry: int, sections: list[_Section]) -> Iterator[int]:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    waiting, met = deque([entry]), {entry}
    left = _MOST_INSTRUCTIONS
    while waiting:
        start = waiting.popleft()
        farthest = start
        code = next(
            (data[start - at :] for at, data in sections if 0 <= start - at < len(data)), b""
        )
        for instruction in decoder.disasm(code[: left * _LONGEST], start):
            left -= 1
            if left <= 0:
                return
            target = _target(instruction)
            if target is None:
                if instruction.mnemonic in _USES:
                    yield from _immediates(instruction)
            elif instruction.mnemonic != "call" and start <= target:
                farthest = max(farthest, target)
            elif target not in met and len(met) < _MOST_FUNCTIONS:
                met.add(target)
                waiting.append(target)
            is_end = instruction.mnemonic in {"ret", "jmp", "ud2", "hlt"}
            if is_end and instruction.address >= farthest:
                break


def _target(instruction: capstone.CsInsn) -> int | None:
    """Where a direct jump or call goes."""
    groups = {capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL}
    if not groups.intersection(instruction.groups) or not instruction.operands:
        return None
    (operand,) = instruction.operands
    return int(operand.imm) if operand.type == x86_const.X86_OP_IMM else None


def _immediates(instruction: capstone.CsInsn) -> Iterator[int]:
    for operand in instruction.operands:
        if operand.type == x86_const.X86_OP_IMM:
            value = int(operand.imm)
        elif instruction.mnemonic == "lea" and operand.type == x86_const.X86_OP_MEM:
            if operand.mem.base == x86_const.X86_REG_RIP:
                continue
            value = int(operand.mem.disp)
        else:
            continue
        yield value & U64_MASK
        if value < 0:
            yield -value  # a comparison with n is often the subtraction of n
