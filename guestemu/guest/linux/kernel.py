# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel image, analysed: what to load, where its symbols are, how its structures lie."""

from __future__ import annotations

import functools
import io
import re
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from guestemu.abi.elf import code_sections
from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.guest.linux.btf import Btf
from guestemu.guest.linux.image import load_image
from guestemu.guest.linux.kallsyms import read_kallsyms
from guestemu.guest.linux.sites import Site, find_sites
from guestemu.guest.linux.symbol_map import BANNER, NEEDED, files_beside, fits, read_symbols

KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map: where the kernel's own physical addresses are mapped."""

_VERSION: Final = re.compile(rb"Linux version (\S+) ")
_BANNER: Final = b"Linux version "
_MAX_PARTS: Final = 4096
_MAX_ADDRESS: Final = 2 << 30
"""KERNEL_IMAGE_SIZE is 1 GiB (arch/x86/include/asm/page_64_types.h), and it starts at 16 MiB."""
_DAMAGE: Final = (
    *(ELFError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
"""What pyelftools raises for a damaged file; it is not made for those."""


class LoadSegment(msgspec.Struct, frozen=True):
    """One PT_LOAD: physical address, file bytes, size in memory (the rest is zero)."""

    physical: int
    data: bytes
    size: int


class Segments:
    """A kernel's PT_LOAD segments, read when first asked for: only a boot needs their bytes.

    `extent` is the physical address behind the last of them.
    """

    def __init__(self, extent: int, read: Callable[[], tuple[LoadSegment, ...]]) -> None:
        self.extent = extent
        self._read = read

    @functools.cached_property
    def parts(self) -> tuple[LoadSegment, ...]:
        """All of them."""
        return self._read()


class Kernel(msgspec.Struct, frozen=True):
    """What is known of one image. `entry` is the physical entry point of 64-bit code."""

    name: str
    version: str
    digest: str
    entry: int
    segments: Segments
    symbols: Mapping[str, int]
    sites: tuple[Site, ...]
    btf: Btf

    def address(self, symbol: str) -> int:
        """The virtual address of a symbol; `InputError` if this kernel lacks it."""
        address = self.symbols.get(symbol)
        if address is None:
            alike = [name for name in self.symbols if name[:3] == symbol[:3]]
            remedy = f"; {nearest(symbol, alike)}" if alike else ""
            raise InputError(f"{self.name} ({self.version}): no symbol {symbol}{remedy}")
        return address

    def symbol_at(self, address: int) -> str:
        """The function that holds `address`, as name+0xoffset; the address itself if none does."""
        best, where = "", 0
        for name, start in self.symbols.items():
            if where < start <= address:
                best, where = name, start
        return f"{best}+{address - where:#x}" if best else f"{address:#x}"


def check_shape(elf: ELFFile, size: int) -> None:
    """Raises ELFError for an ELF file of `size` bytes that no linker makes: more parts than a
    kernel has, parts outside of the file or over each other, more memory than a kernel may take."""
    if elf.num_segments() > _MAX_PARTS or elf.num_sections() > _MAX_PARTS:
        raise ELFError(f"it has more than {_MAX_PARTS} segments or sections")
    memory: list[tuple[int, int]] = []
    for part in elf.iter_segments("PT_LOAD"):
        start, length, taken = part["p_offset"], part["p_filesz"], part["p_memsz"]
        if start + length > size or length > taken:
            raise ELFError("a segment lies outside of the file")
        memory.append((part["p_paddr"], part["p_paddr"] + taken))
    memory.sort()
    if any(end > start for (_, end), (start, _) in pairwise(memory)):
        raise ELFError("its segments overlap")
    if memory and memory[-1][1] > _MAX_ADDRESS:
        raise ELFError(f"it is loaded up to {memory[-1][1]:#x}, kernels below {_MAX_ADDRESS:#x}")
    total = 0
    for section in elf.iter_sections():
        if section["sh_type"] in {"SHT_NULL", "SHT_NOBITS"}:
            continue
        if section["sh_offset"] + section["sh_size"] > size:
            raise ELFError("a section lies outside of the file")
        total += section["sh_size"]
    if total > size:
        raise ELFError("its sections overlap")


def load_kernel(path: Path, progress: Callable[[str], None] | None = None) -> Kernel:
    """Reads and analyses the kernel in `path` (about two seconds). `progress` is called with each
    step.

    Raises `InputError` for anything that is not a usable x86-64 kernel, and names what is missing.
    """
    say = progress or (lambda _step: None)
    say("unpacking")
    image = load_image(path)
    try:
        elf = ELFFile(io.BytesIO(image.elf))
        check_shape(elf, len(image.elf))
        segments = tuple(
            LoadSegment(int(part["p_paddr"]), bytes(part.data()), int(part["p_memsz"]))
            for part in elf.iter_segments("PT_LOAD")
        )
        sections = {
            section.name: section
            for section in elf.iter_sections()
            if section["sh_type"] != "SHT_NULL"
        }
        entry = int(elf["e_entry"])
        machine = elf["e_machine"]
    except _DAMAGE as error:
        text = str(error) or type(error).__name__
        raise InputError(f"{path}: its kernel is a damaged ELF file: {text}") from None
    if machine != "EM_X86_64":
        raise InputError(f"{path}: a kernel for {machine}, not for x86-64")
    for name in (".rodata", ".BTF"):
        section = sections.get(name)
        if section is None:
            continue
        if section["sh_type"] != "SHT_PROGBITS" or section.compressed:
            raise InputError(f"{path}: its kernel is a damaged ELF file: {name} has no plain bytes")
    if ".rodata" not in sections:
        raise InputError(f"{path}: the kernel has no .rodata section")
    rodata = bytes(sections[".rodata"].data())
    say("symbols")
    symbols = _symbols(path, rodata, int(sections[".rodata"]["sh_addr"]))
    say("types")
    btf = Btf(bytes(sections[".BTF"].data()), image.name) if ".BTF" in sections else None
    say("instructions")
    starts = sorted(set(symbols.values()))
    sites: list[Site] = []
    for address, code in code_sections(sections.values()):
        sites += find_sites(code, address, starts)
    version = _VERSION.search(rodata)
    return Kernel(
        name=image.name,
        version=version.group(1).decode("ascii", "replace") if version else "unknown",
        digest=image.digest,
        entry=entry & ~KERNEL_MAP if entry >= KERNEL_MAP else entry,
        segments=Segments(
            max((part.physical + part.size for part in segments), default=0), lambda: segments
        ),
        symbols=symbols,
        sites=tuple(sites),
        btf=btf or Btf.without_types(image.name),
    )


def _symbols(path: Path, rodata: bytes, address: int) -> dict[str, int]:
    """The kernel's symbols: its own table, where that also has data, else those of the map or the
    vmlinux beside `path` that fits. Raises `InputError` that says what brings them."""
    own: dict[str, int] = {}
    problem = ""
    try:
        own = read_kallsyms(rodata, address, path.name)
    except InputError as error:
        problem = str(error)
    if all(name in own for name in NEEDED):
        return own
    others = []
    for other in files_beside(path):
        symbols = read_symbols(other)
        banner = symbols.get(BANNER, 0) - address
        has_banner = 0 <= banner < len(rodata) and rodata.startswith(_BANNER, banner)
        if fits(symbols, own, has_banner):
            return symbols
        others.append(other.name)
    missing = problem or f"{path.name}: the kernel has no names of its data; it needs "
    if not problem:
        missing += "CONFIG_KALLSYMS_ALL=y"
    beside = f"; {', '.join(others)} beside it is of another build" if others else ""
    raise InputError(f"{missing}, or the System.map or vmlinux of its build beside it{beside}")
