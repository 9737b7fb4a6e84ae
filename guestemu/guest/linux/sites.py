# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel's text holds the instructions that the emulator cannot hook by kind.

A search for the bytes gives candidates; each is kept only if disassembling its function from the
start (capstone) arrives at it as an instruction. To disassemble all of a kernel's text would take a
minute.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final

import capstone
import msgspec

_PATTERNS: Final[Mapping[str, bytes]] = {
    "rdmsr": rb"\x0f\x32",
    "wrmsr": rb"\x0f\x30",
    "rdtsc": rb"\x0f\x31",
    "rdrand": rb"[\x40-\x4f]?\x0f\xc7[\xf0-\xf7]",  # with an optional REX prefix
}

_MAX_FUNCTION: Final = 1 << 16


class Site(msgspec.Struct, frozen=True):
    """One instruction: its virtual address and mnemonic."""

    address: int
    mnemonic: str


def find_sites(text: bytes, base: int, functions: list[int]) -> list[Site]:
    """Each RDMSR, WRMSR, RDTSC and RDRAND in `text`, which is linked at `base`.

    `functions` are the sorted start addresses of the functions in it.
    """
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.skipdata = True
    by_function: dict[int, set[tuple[int, str]]] = {}
    for mnemonic, pattern in _PATTERNS.items():
        for match in re.finditer(pattern, text, re.DOTALL):
            address = base + match.start()
            index = bisect_right(functions, address) - 1
            if index >= 0 and address - functions[index] < _MAX_FUNCTION:
                by_function.setdefault(functions[index], set()).add((address, mnemonic))
    sites = []
    for start, candidates in sorted(by_function.items()):
        last = max(address for address, _ in candidates)
        code = text[start - base : last - base + 16]
        reached = {address for address, _size, _m, _o in engine.disasm_lite(code, start)}
        sites += [Site(address, name) for address, name in candidates if address in reached]
    return sorted(sites, key=lambda site: site.address)
