# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code for the host (hooks.c, psc.c), and mode switches for the guest (modes.S).

The former is built when guestemu is installed (`guestemu.native`); the guest's code is built from
assembly by `make snippets` and committed.
"""

from __future__ import annotations

import ctypes
import functools
from importlib.resources import files

import msgspec

from guestemu.abi.elf import read_elf
from guestemu.native import load
from guestemu.native.build import HOOKS


class Blob(msgspec.Struct, frozen=True):
    """Bytes of one linked ELF file: load address, contents, global symbols."""

    base: int
    code: bytes
    symbols: dict[str, int]


@functools.cache
def load_blob(name: str) -> Blob:
    """Reads `NAME.elf` of this package, once in a process."""
    elf = read_elf((files(__name__) / f"{name}.elf").read_bytes())
    base, code = elf.sections[".text"]
    return Blob(base, code, elf.symbols)


class HostCode:
    """The bodies of the hooks in machine code (hooks.c): host addresses for the emulator.

    `available` is False where there are none (`guestemu.native.why_not`); the Python bodies of the
    same hooks are then used (slower, same results).
    """

    def __init__(self) -> None:
        library = load(HOOKS)
        self.available = library is not None
        self.block_hook = _address(library, "block_hook")
        self.memory_hook = _address(library, "memory_hook")
        self.invalid_hook = _address(library, "invalid_hook")
        self.instruction_hook = _address(library, "instruction_hook")
        self.launch = _address(library, "launch")
        self.rollback = _address(library, "rollback")
        self.find_unseen = _address(library, "find_unseen")
        self.tlb_hook = _address(library, "tlb_hook")
        self.pvalidate_frame = _address(library, "pvalidate_frame")
        self.psc_begin = _address(library, "psc_begin")
        self.psc_done = _address(library, "psc_done")
        self.psc_answer = _address(library, "psc_answer")


def _address(library: ctypes.PyDLL | None, name: str) -> int:
    return 0 if library is None else ctypes.cast(library[name], ctypes.c_void_p).value or 0
