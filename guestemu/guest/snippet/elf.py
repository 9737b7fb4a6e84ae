# SPDX-License-Identifier: GPL-2.0-or-later
"""The committed machine code of the snippet guest, one ELF file for each kernel generation.

Linked at GVA = GPA 0x10000, below 0x30000; code, constants and data on pages of their own. How to
call it: RIP = a function's address, RDI, RSI, RDX, RCX = arguments, RSP = stack top - 8 holding the
address of `guest_return`; 64-bit mode, CPL 0, interrupts off. RAX holds the result at the HLT of
`guest_return`. An exception without a fix-up ends at the HLT of `guest_oops` (info.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

import msgspec

from guestemu.abi.addresses import Gpa, Gva
from guestemu.abi.elf import ElfError, read_elf
from guestemu.abi.errors import InputError
from guestemu.guest.snippet.generations import GENERATIONS

TDX_GENERATION: Final = "6.12"
"""The generation whose code also runs as a TD, as 6.12 to 7.3 do (T17)."""

TDX_IMAGE: Final = f"{TDX_GENERATION}-tdx"

SNP_GENERATION: Final = "6.12"
"""The generation whose code also runs as an SNP guest, as 6.12 to 7.3 do (N17)."""

SNP_IMAGE: Final = f"{SNP_GENERATION}-snp"

VECTORS: Final = 32
UD2_SIZE: Final = 2

_SITE: Final = re.compile(r"(vmmcall|msr|pte|flush)_site_(\d+)")
_PF_X: Final = 1
_PF_W: Final = 2


class Segment(msgspec.Struct, frozen=True):
    """A part of the image: `address` (GPA = GVA), bytes of the file, size in memory in bytes.

    What the file does not hold is zero.
    """

    address: Gpa
    data: bytes
    size: int
    is_code: bool
    is_writable: bool


class SnippetImage(msgspec.Struct, frozen=True):
    """One generation's code.

    `symbols`: every global symbol; the absolute ones (`INFO_*`) are offsets, not addresses.
    `info`: address of the info block. `vmmcall_sites`: VMMCALL and VMCALL; `msr_sites`: RDMSR and
    WRMSR; `pte_sites`: stores into live page tables; `flush_sites`: INVLPG and the first of the two
    CR4 writes of a global flush; each in the order of the code. `warnings`: address of the UD2 of a
    WARN -> its name; continue `UD2_SIZE` bytes behind it. `exceptions`: entry per vector.
    """

    generation: str
    segments: tuple[Segment, ...]
    symbols: Mapping[str, int]
    info: Gpa
    vmmcall_sites: tuple[Gva, ...]
    msr_sites: tuple[Gva, ...]
    pte_sites: tuple[Gva, ...]
    flush_sites: tuple[Gva, ...]
    warnings: Mapping[int, str]
    exceptions: tuple[Gva, ...]

    def address(self, symbol: str) -> Gva:
        """Where `symbol` is; `InputError` if this generation has no such symbol."""
        try:
            return Gva(self.symbols[symbol])
        except KeyError:
            raise InputError(
                f"snippet {self.generation}: no symbol {symbol!r}, this generation lacks it"
            ) from None


@functools.cache
def load_snippet(generation: str) -> SnippetImage:
    """The code of `generation`, one of `GENERATIONS`, `TDX_IMAGE` or `SNP_IMAGE`.

    Raises `InputError` for any other name.

    Read once in a process: parsing takes a fifth of the time in which a testbed is made.
    """
    if generation not in {*GENERATIONS, TDX_IMAGE, SNP_IMAGE}:
        raise InputError(
            f"snippet generation {generation!r}: unknown, take one of {', '.join(GENERATIONS)}"
        )
    known = GENERATIONS.get(generation)
    if known is not None and known.image is not None:
        return parse_snippet(generation, known.image.read_bytes())
    name = assembly_of(generation)
    image = (files("guestemu.guest.snippet") / f"snippet-{name}.elf").read_bytes()
    return parse_snippet(generation, image)


def assembly_of(generation: str) -> str:
    """The name of the code that `generation` runs; its own name for images of another kind."""
    known = GENERATIONS.get(generation)
    return known.assembly or generation if known is not None else generation


def parse_snippet(generation: str, image: bytes) -> SnippetImage:
    """Reads an ELF file built like ours; `InputError` names what is missing from another one."""
    try:
        elf = read_elf(image)
    except ElfError as error:
        raise InputError(f"snippet {generation}: not an ELF file, rebuild it: {error}") from None
    symbols = elf.symbols
    segments = tuple(
        Segment(
            Gpa(part.address),
            part.data,
            part.size,
            bool(part.flags & _PF_X),
            bool(part.flags & _PF_W),
        )
        for part in elf.parts
    )
    missing = {"info", "guest_return", "guest_oops", "exception_31"} - symbols.keys()
    if missing:
        raise InputError(
            f"snippet {generation}: symbol {min(missing)!r} is missing, rebuild with its symbols"
        )
    sites = _sites(symbols)
    return SnippetImage(
        generation=generation,
        segments=segments,
        symbols=symbols,
        info=Gpa(symbols["info"]),
        vmmcall_sites=sites["vmmcall"],
        msr_sites=sites["msr"],
        pte_sites=sites["pte"],
        flush_sites=sites["flush"],
        warnings={
            address: name.removeprefix("warn_")
            for name, address in symbols.items()
            if name.startswith("warn_")
        },
        exceptions=tuple(Gva(symbols[f"exception_{vector}"]) for vector in range(VECTORS)),
    )


def _sites(symbols: Mapping[str, int]) -> dict[str, tuple[Gva, ...]]:
    found: dict[str, dict[int, Gva]] = {"vmmcall": {}, "msr": {}, "pte": {}, "flush": {}}
    for name, address in symbols.items():
        match = _SITE.fullmatch(name)
        if match:
            found[match[1]][int(match[2])] = Gva(address)
    return {kind: tuple(by[n] for n in sorted(by)) for kind, by in found.items()}
