# SPDX-License-Identifier: GPL-2.0-or-later
"""Which function of a kernel an address lies in, fast, and which functions a stack returns to."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Set
from typing import Final

from guestemu.abi.addresses import Gva
from guestemu.guest.linux.kernel import Kernel
from guestemu.machine.vcpu import Vcpu

_CALL_REL32: Final = 0xE8
_MAX_STACK: Final = 0x2000
_TEXT: Final = (("_stext", "_etext"), ("_sinittext", "_einittext"))


class SymbolIndex:
    """The functions of one kernel by address."""

    def __init__(self, kernel: Kernel) -> None:
        symbols = kernel.symbols
        self._ranges = tuple(
            (symbols[first], symbols[last])
            for first, last in _TEXT
            if first in symbols and last in symbols
        )
        by_address: dict[int, str] = {}
        for name, address in symbols.items():
            if self.is_text(address) and not name.startswith("__pfx_"):
                by_address.setdefault(address, name)
        self._starts = sorted(by_address)
        self._names = by_address

    @property
    def starts(self) -> Set[int]:
        """Addresses at which a function begins."""
        return self._names.keys()

    def is_text(self, address: int) -> bool:
        """Whether `address` lies in the kernel's code."""
        return any(first <= address < last for first, last in self._ranges)

    def function(self, address: int) -> str:
        """The function that holds `address`; "" outside of code."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or not self.is_text(address):
            return ""
        return self._names[self._starts[index]]

    def location(self, address: int) -> str:
        """`address` as function+0xoffset; hexadecimal outside of code."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or not self.is_text(address):
            return f"{address:#x}"
        start = self._starts[index]
        return f"{self._names[start]}+{address - start:#x}"


def frames(vcpu: Vcpu, index: SymbolIndex, stack_end: int) -> Iterator[str]:
    """Functions on the stack, innermost first: the one at RIP, then those that the words up to
    `stack_end` (an address) return to.

    A word counts if a CALL ends there. Old words in unused stack slots also count: the result is
    for finding what is common to many samples, not a backtrace.
    """
    yield index.function(vcpu.read_register("rip"))
    rsp = vcpu.read_register("rsp")
    size = min(max(stack_end - rsp, 0), _MAX_STACK) & ~7
    data = vcpu.read_memory(Gva(rsp), size) if size else None
    for (word,) in struct.iter_unpack("<Q", data or b""):
        if index.is_text(word):
            code = vcpu.read_memory(Gva(word - 5), 5)
            if code is not None and (code[0] == _CALL_REL32 or code[3] == 0xFF or code[2] == 0xFF):
                yield index.function(word)
