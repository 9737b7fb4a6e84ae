# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a snippet guest's code: functions, and the sites that matter to a host."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.guest.base import Guest
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.snippet.elf import SnippetImage, load_snippet
from guestemu.machine import layout

SITE_TEXT: Final = {
    "vmmcall": "hypercall",
    "msr": "MSR access",
    "pte": "page-table store",
    "flush": "TLB flush",
}
_MNEMONICS: Final = {
    "vmmcall": "vmmcall",
    "vmcall": "vmmcall",
    "rdmsr": "msr",
    "wrmsr": "msr",
    "invlpg": "flush",
}
_NO_FUNCTION: Final = re.compile(
    r"(.*_site_\d+|warn_.*|bug_.*|once_.*|INFO_.*|info|ex_table_.*|guest_return)"
)
_STUB: Final = "raw instruction"


class Symbols:
    """`functions` by address, `sites` (a key of `SITE_TEXT`) by address, `warnings` by address."""

    def __init__(
        self, functions: Mapping[int, str], sites: Mapping[int, str], warnings: Mapping[int, str]
    ) -> None:
        self.functions = functions
        self.sites = dict(sites)
        self.warnings = warnings
        self._starts = sorted(functions)

    def learn(self, address: int, text: str) -> None:
        """Notes that the instruction `text` at `address` is a site, if it is one."""
        kind = _MNEMONICS.get(text.partition(" ")[0])
        if kind is not None:
            self.sites.setdefault(address, kind)

    def name(self, address: int) -> str:
        """`address` as "function" or "function+0x12"; hexadecimal below every function."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return f"{address:#x}"
        start = self._starts[index]
        offset = f"+{address - start:#x}" if address > start else ""
        return f"{self.functions[start]}{offset}"


def _of_snippet(image: SnippetImage) -> Symbols:
    code = [
        range(segment.address, segment.address + segment.size)
        for segment in image.segments
        if segment.is_code
    ]
    functions: dict[int, str] = {layout.STUB: _STUB} | {
        address: name
        for name, address in image.symbols.items()
        if not _NO_FUNCTION.fullmatch(name) and any(address in part for part in code)
    }
    sites: dict[int, str] = {
        **dict.fromkeys(image.vmmcall_sites, "vmmcall"),
        **dict.fromkeys(image.msr_sites, "msr"),
        **dict.fromkeys(image.pte_sites, "pte"),
        **dict.fromkeys(image.flush_sites, "flush"),
    }
    return Symbols(functions, sites, dict(image.warnings))


def symbols_of(guest: Guest) -> Symbols:
    """The names of a guest's code. Raises `InputError` for a guest without any.

    A kernel's sites are not known before it has run: see `Symbols.learn`. Which of its stores go to
    page tables is not known at all.
    """
    if isinstance(guest, LinuxGuest):
        index = guest.calls.index
        names: dict[int, str] = {start: index.function(start) for start in index.starts}
        return Symbols(names | {layout.STUB: _STUB}, {}, {})
    kind, _, generation = guest.name.partition(":")
    if kind != "snippet":
        raise InputError(f"guest {guest.name}: its code has no names here; take another guest")
    return _of_snippet(load_snippet(generation))
