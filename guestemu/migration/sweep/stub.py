# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembles the guest program of a scenario: calls of kernel functions, one after another.

The program runs inside the guest, so that nothing outside knows how far it is: RAM and the CPU's
state are all there is to migrate. Encodings: AMD64 Architecture Programmer's Manual, volume 3.
"""

from __future__ import annotations

import struct
from typing import Final

from guestemu.abi.addresses import U64_MASK

_MOVABS: Final = {
    "rdi": b"\x48\xbf",
    "rsi": b"\x48\xbe",
    "rdx": b"\x48\xba",
    "rcx": b"\x48\xb9",
    "r8": b"\x49\xb8",
    "rax": b"\x48\xb8",
}
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8")
_FROM_RAX: Final = {"rdx": b"\x48\x89\xc2", "rcx": b"\x48\x89\xc1"}
_CALL_RAX: Final = b"\xff\xd0"
_STORE_RAX: Final = b"\x48\xa3"
_LOAD_RAX: Final = b"\x48\xa1"
_PAUSE: Final = b"\xf3\x90"


class MemoryArgument:
    """An argument that the program reads from memory: the 64-bit word at `address`."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address


class Stub:
    """Machine code for virtual address `start`."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._code = bytearray()

    @property
    def code(self) -> bytes:
        """The bytes so far."""
        return bytes(self._code)

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return self.start + len(self._code)

    def call(
        self, function: int, *arguments: int | MemoryArgument, result: int | None = None
    ) -> None:
        """Calls the function at address `function` with up to five arguments; RAX is stored at
        address `result`. Loaded arguments are RDX or RCX."""
        for name, value in zip(_ARGUMENTS, arguments, strict=False):
            if isinstance(value, MemoryArgument):
                self._code += _LOAD_RAX + struct.pack("<Q", value.address) + _FROM_RAX[name]
            else:
                self._load(name, value)
        self._load("rax", function)
        self._code += _CALL_RAX
        if result is not None:
            self._code += _STORE_RAX + struct.pack("<Q", result)

    def pause(self) -> None:
        """PAUSE: somewhere to stop."""
        self._code += _PAUSE

    def _load(self, register: str, value: int) -> None:
        self._code += _MOVABS[register] + struct.pack("<Q", value & U64_MASK)
