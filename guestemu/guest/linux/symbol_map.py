# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of a kernel from the files that its build left: System.map, or vmlinux's symbol table.

A kernel without CONFIG_KALLSYMS_ALL carries the names of its functions only. Its build tree has all
of them; so have distributions beside /boot/vmlinuz-*. A map of another build would mislead, so it
is taken only if it agrees with the image: by where `linux_banner` is, and by every function that
the image itself names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular

NEEDED: Final = ("physical_mask", "page_offset_base", "vmemmap_base")
"""Data without which no kernel can be used: in kallsyms with CONFIG_KALLSYMS_ALL only."""
BANNER: Final = "linux_banner"

_BUILT: Final = ("arch", "x86", "boot")
_LINE: Final = re.compile(rb"^([0-9a-f]{16}) [A-Za-z] (\S+)$", re.MULTILINE)
_MAX_MAP: Final = 64 << 20


def files_beside(image: Path) -> Iterator[Path]:
    """The files with symbols where a build or a distribution has them for `image`."""
    name = image.name
    directories = [image.parent]
    resolved = image.resolve().parent
    if resolved.parts[-3:] == _BUILT:
        directories.append(resolved.parents[2])
    suffix = name.partition("-")[2] if name.startswith(("vmlinuz-", "vmlinux-", "bzImage-")) else ""
    names = [f"System.map-{suffix}"] if suffix else []
    for directory in directories:
        for other in (*names, "System.map", "vmlinux"):
            path = directory / other
            if path.is_file() and path.resolve() != image.resolve():
                yield path


def stamp_beside(image: Path) -> str:
    """Changes with the files beside `image`."""
    parts = []
    for path in files_beside(image):
        status = path.stat()
        parts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return "; ".join(parts)


def read_symbols(path: Path) -> dict[str, int]:
    """The symbols in a System.map, or in the symbol table of a vmlinux. A name that occurs more
    than once keeps its first address. Raises `InputError`."""
    try:
        with path.open("rb") as file:
            is_elf = file.read(4) == b"\x7fELF"
            if is_elf:
                return _of_elf(ELFFile(file))
        data = read_regular(path, _MAX_MAP)
    except (OSError, ELFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: its symbols cannot be read: {error}") from None
    symbols: dict[str, int] = {}
    for address, name in _LINE.findall(data):
        symbols.setdefault(name.decode("ascii", "replace"), int(address, 16))
    return symbols


def _of_elf(elf: ELFFile) -> dict[str, int]:
    table = elf.get_section_by_name(".symtab")
    symbols: dict[str, int] = {}
    if isinstance(table, SymbolTableSection):
        for symbol in table.iter_symbols():
            if symbol.name and symbol["st_value"]:
                symbols.setdefault(symbol.name, int(symbol["st_value"]))
    return symbols


def fits(symbols: Mapping[str, int], own: Mapping[str, int], has_banner: bool) -> bool:
    """Whether `symbols` are of the kernel that names `own` itself; `has_banner`: the kernel's
    banner is where they say."""
    if not has_banner or any(name not in symbols for name in NEEDED):
        return False
    wrong = sum(symbols.get(name, address) != address for name, address in own.items())
    return wrong <= len(own) // 100
