# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code made from assembly: hook bodies for the host CPU, mode switches for the guest.

The ELF files are built from the `.S` beside them by `make snippets` and committed.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
from importlib.resources import files
from io import BytesIO
from typing import Final

import msgspec
from elftools.elf.elffile import ELFFile

_PROT: Final = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC


def runs_here() -> bool:
    """Whether this host's processor runs x86-64 machine code."""
    return platform.machine() in {"x86_64", "AMD64"}


class Blob(msgspec.Struct, frozen=True):
    """Bytes of one linked ELF file: load address, contents, global symbols."""

    base: int
    code: bytes
    symbols: dict[str, int]


@functools.cache
def load_blob(name: str) -> Blob:
    """Reads `NAME.elf` of this package, once in a process."""
    elf = ELFFile(BytesIO((files(__name__) / f"{name}.elf").read_bytes()))
    section = elf.get_section_by_name(".text")
    symbols = {
        symbol.name: int(symbol["st_value"])
        for symbol in elf.get_section_by_name(".symtab").iter_symbols()
        if symbol["st_info"]["bind"] == "STB_GLOBAL"
    }
    return Blob(int(section["sh_addr"]), bytes(section.data()), symbols)


class HostCode:
    """The hook bodies, placed in executable memory of this process.

    `available` is False on a host that is no x86-64 or forbids executable anonymous memory; the
    Python bodies of the same hooks are then used (slower, same results).
    """

    def __init__(self) -> None:
        self.available = False
        self.block_hook = 0
        self.memory_hook = 0
        self.invalid_hook = 0
        self.launch = 0
        self.rollback = 0
        if not runs_here():
            return
        blob = load_blob("hooks")
        try:
            self._memory = mmap.mmap(
                -1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_PROT
            )
        except (OSError, PermissionError):
            return
        self._memory[: len(blob.code)] = blob.code
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.block_hook = address + blob.symbols["block_hook"] - blob.base
        self.memory_hook = address + blob.symbols["memory_hook"] - blob.base
        self.invalid_hook = address + blob.symbols["invalid_hook"] - blob.base
        self.launch = address + blob.symbols["launch"] - blob.base
        self.rollback = address + blob.symbols["rollback"] - blob.base
        self.available = True
