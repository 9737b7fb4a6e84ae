# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbol tables as scripts/kallsyms.c of several kernels writes them, with lengths as one likes."""

from __future__ import annotations

import enum
import struct

ADDRESS = 0xFFFF_FFFF_8220_0000
TEXT = 0xFFFF_FFFF_8100_0000
PER_CPU = 0x1FB80
_KIND = "T"


class Layout(enum.Enum):
    """By the first kernel that has it."""

    OFFSETS_FIRST = "5.10"
    WITH_ORDER = "6.2"
    OFFSETS_LAST = "6.4"
    NO_PER_CPU = "6.15"
    OWN_PLACE = "7.0"

    @property
    def alignment(self) -> int:
        """Of every table, in bytes."""
        return 4 if self is Layout.OWN_PLACE else 8

    @property
    def has_per_cpu(self) -> bool:
        """Whether per-CPU variables are offsets, below every address."""
        return self in {Layout.OFFSETS_FIRST, Layout.WITH_ORDER, Layout.OFFSETS_LAST}


def tokens(first: bytes = b"set_") -> list[bytes]:
    """256 tokens: each character is one of its own, free places hold pairs, `first` is the one at
    number 0."""
    found = [bytes([code]) if 0x21 <= code < 0x7F else b"%02x_" % code for code in range(256)]
    found[0] = first
    return found


def name_of(number: int, length: int = 0) -> str:
    """The symbol of that number, with `length` characters added."""
    return f"f{number:05d}" + "x" * length


def write_tables(
    layout: Layout, names: list[str], table: list[bytes], lead: int = 0
) -> tuple[bytes, dict[str, int]]:
    """A read-only data section at `ADDRESS` and what is to be read from it.

    No byte of any table's padding is part of it, and what stands before a table ends, where it can,
    on the boundary without a NUL. `lead` is the number of bytes in front.
    """
    align = layout.alignment
    data = bytearray(b"\x7f" * lead)
    base = TEXT

    def begin() -> int:
        data.extend(bytes(-len(data) % align))
        return len(data)

    symbols = {
        name: PER_CPU + 8 * number if layout.has_per_cpu and number < 4 else TEXT + 16 * number
        for number, name in enumerate(names)
    }

    def put_offsets() -> None:
        place = begin()
        for number, address in enumerate(symbols.values()):
            if layout is Layout.OWN_PLACE:
                value = address - (ADDRESS + place + 4 * number)
            elif not layout.has_per_cpu:
                value = address - base
            else:
                value = address if address < base else base - 1 - address
            data.extend(struct.pack("<i", value))
        if layout is not Layout.OWN_PLACE:
            begin()
            data.extend(struct.pack("<Q", base))

    def put_order() -> None:
        begin()
        for number in range(len(names)):
            data.extend(b"\x01" + struct.pack(">H", number & 0xFFFF | 0x0101))

    if layout in {Layout.OFFSETS_FIRST, Layout.WITH_ORDER}:
        put_offsets()
    begin()
    data.extend(struct.pack("<I", len(names)))
    start = begin()
    markers = []
    for number, name in enumerate(names):
        if number % 256 == 0:
            markers.append(len(data) - start)
        text = (_KIND + name).encode()
        size = len(text)
        data.extend(bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7]))
        data.extend(text)
    begin()
    data.extend(struct.pack(f"<{len(markers)}I", *markers))
    if layout is Layout.WITH_ORDER:
        put_order()
    begin()
    places = []
    table_start = len(data)
    for token in table:
        places.append(len(data) - table_start)
        data.extend(token + b"\0")
    begin()
    data.extend(struct.pack("<256H", *places))
    if layout not in {Layout.OFFSETS_FIRST, Layout.WITH_ORDER}:
        put_offsets()
        put_order()
    return bytes(data), symbols
