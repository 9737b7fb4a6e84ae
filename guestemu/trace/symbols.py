# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a snippet guest's code: functions, and the sites that matter to a host."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.guest.base import Guest
from guestemu.guest.snippet.elf import SnippetImage, load_snippet
from guestemu.machine import layout

SITE_TEXT: Final = {
    "vmmcall": "hypercall",
    "msr": "MSR access",
    "pte": "page-table store",
    "flush": "TLB flush",
}
_NO_FUNCTION: Final = re.compile(
    r"(.*_site_\d+|warn_.*|bug_.*|once_.*|INFO_.*|info|ex_table_.*|guest_return)"
)
_STUB: Final = "raw instruction"


class Symbols:
    """`functions` by address, `sites` (a key of `SITE_TEXT`) by address, `warnings` by address."""

    def __init__(self, image: SnippetImage) -> None:
        code = [
            range(segment.address, segment.address + segment.size)
            for segment in image.segments
            if segment.is_code
        ]
        self.functions = {
            address: name
            for name, address in image.symbols.items()
            if not _NO_FUNCTION.fullmatch(name) and any(address in part for part in code)
        }
        self.functions[layout.STUB] = _STUB
        self.sites: dict[int, str] = {
            **dict.fromkeys(image.vmmcall_sites, "vmmcall"),
            **dict.fromkeys(image.msr_sites, "msr"),
            **dict.fromkeys(image.pte_sites, "pte"),
            **dict.fromkeys(image.flush_sites, "flush"),
        }
        self.warnings = dict(image.warnings)
        self._starts = sorted(self.functions)

    def name(self, address: int) -> str:
        """`address` as "function" or "function+0x12"; hexadecimal below every function."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return f"{address:#x}"
        start = self._starts[index]
        offset = f"+{address - start:#x}" if address > start else ""
        return f"{self.functions[start]}{offset}"


def symbols_of(guest: Guest) -> Symbols:
    """The names of a guest's code. Raises `InputError` for a guest without snippet code."""
    kind, _, generation = guest.name.partition(":")
    if kind != "snippet":
        raise InputError(f"guest {guest.name}: its code has no names here; take a snippet guest")
    return Symbols(load_snippet(generation))
