# SPDX-License-Identifier: GPL-2.0-or-later
"""Linked ELF files for x86-64: what is loaded, the sections, the global symbols; and which sections
of other ELF files are code.

The former is what our own guest code needs. The library that reads all of ELF (pyelftools, for
kernels and handlers) takes longer to import than a short program takes to run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from elftools.elf.sections import Section

_IDENT: Final = b"\x7fELF\x02\x01\x01"
"""64-bit, little endian, version 1."""

_HEADER: Final = struct.Struct("<16s2HI3QI6H")
_PROGRAM: Final = struct.Struct("<2I6Q")
_SECTION: Final = struct.Struct("<2I4Q2I2Q")
_SYMBOL: Final = struct.Struct("<I2BH2Q")
_PT_LOAD: Final = 1
_SHT_SYMTAB: Final = 2
_SHT_NOBITS: Final = 8
_CODE: Final = 2 | 4
"""SHF_ALLOC and SHF_EXECINSTR."""

_STB_GLOBAL: Final = 1
_BIND_SHIFT: Final = 4


class ElfError(ValueError):
    """Bytes that are no such file."""


class LoadedPart(msgspec.Struct, frozen=True):
    """A PT_LOAD segment: physical address, bytes of the file, bytes in memory, PF_* flags."""

    address: int
    data: bytes
    size: int
    flags: int


class LinkedElf(msgspec.Struct, frozen=True):
    """`sections`: address and bytes by name; `symbols`: the values of the global ones by name."""

    parts: tuple[LoadedPart, ...]
    sections: dict[str, tuple[int, bytes]]
    symbols: dict[str, int]


def read_elf(image: bytes) -> LinkedElf:
    """What the file `image` holds. Raises `ElfError`."""
    if not image.startswith(_IDENT):
        raise ElfError("no 64-bit ELF file, little endian")
    try:
        return _read(image)
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ElfError(f"damaged: {error}") from None


def _read(image: bytes) -> LinkedElf:
    header = _HEADER.unpack_from(image)
    programs, sections = header[5], header[6]
    program_size, program_count, section_size, section_count, names_index = header[9:]
    parts = tuple(
        LoadedPart(at, _cut(image, offset, filled), size, flags)
        for kind, flags, offset, _, at, filled, size, _ in _table(
            _PROGRAM, image, programs, program_size, program_count
        )
        if kind == _PT_LOAD and size
    )
    rows = list(_table(_SECTION, image, sections, section_size, section_count))
    names = _cut(image, *rows[names_index][4:6])
    symbols: dict[str, int] = {}
    for row in rows:
        if row[1] == _SHT_SYMTAB:
            texts = _cut(image, *rows[row[6]][4:6])
            symbols |= _symbols(_cut(image, *row[4:6]), texts)
    held = {
        _text(names, name): (at, _cut(image, offset, size) if kind != _SHT_NOBITS else b"")
        for name, kind, _, at, offset, size, *_ in rows
    }
    return LinkedElf(parts, held, symbols)


def _table(
    form: struct.Struct, image: bytes, start: int, size: int, count: int
) -> Iterator[tuple[int, ...]]:
    """The rows of a table of headers, `size` bytes apart."""
    if count and size < form.size:
        raise ElfError(f"damaged: headers of {size} bytes")
    return (form.unpack_from(image, start + index * size) for index in range(count))


def _cut(image: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(image):
        raise ElfError(f"damaged: {size} bytes at {offset:#x} of {len(image)}")
    return image[offset : offset + size]


def _text(texts: bytes, start: int) -> str:
    return texts[start : texts.find(0, start)].decode() if start < len(texts) else ""


def _symbols(table: bytes, texts: bytes) -> dict[str, int]:
    usable = len(table) // _SYMBOL.size * _SYMBOL.size
    return {
        _text(texts, name): value
        for name, info, _, _, value, _ in _SYMBOL.iter_unpack(table[:usable])
        if info >> _BIND_SHIFT == _STB_GLOBAL
    }


def code_sections(sections: Iterable[Section]) -> Iterator[tuple[int, bytes]]:
    """Address and bytes of each of pyelftools' `sections` that has code: allocated, executable, its
    bytes in the file."""
    for section in sections:
        is_code = section["sh_flags"] & _CODE == _CODE and section["sh_type"] == "SHT_PROGBITS"
        if is_code and not section.compressed:
            yield int(section["sh_addr"]), bytes(section.data())
