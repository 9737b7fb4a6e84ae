# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table that a kernel carries for itself (kernel/kallsyms.c, scripts/kallsyms.c).

Names are compressed: each is a length and that many one-byte tokens. The tables have no header;
they are found by their structure, and accepted only if they agree with each other:

    token_table   256 strings, one after the other; the ten digits are tokens of their own
    token_index   256 16-bit offsets into it, the first 0
    num_syms      a count, just before the names; as many names fit before token_table
    markers       32-bit offset of every 256th name, the first 0; just behind the names
    offsets, relative_base
                  before num_syms (up to 6.3), or after token_index (6.4 on)

With CONFIG_KALLSYMS_ABSOLUTE_PERCPU (x86-64 up to 6.14) an offset >= 0 is the address itself, a
negative one means relative_base - 1 - offset; without it the offset is added to relative_base.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from guestemu.abi.errors import InputError

_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS: Final = 256
_PER_MARKER: Final = 256
_KERNEL_START: Final = 0xFFFF_FFFF_8000_0000
_BIG_NAME: Final = 0x80
_MIN_SYMBOLS: Final = 1 << 10
_MAX_SYMBOLS: Final = 1 << 21
_MAX_NAMES: Final = 16 << 20


def read_kallsyms(data: bytes, name: str) -> dict[str, int]:
    """Address of every symbol in `data`, the kernel's read-only data section.

    A name that occurs more than once keeps its first address. `name` is the image's, for errors.
    Raises `InputError` where the tables are not found.
    """
    position = -1
    while (position := data.find(_DIGITS, position + 1)) >= 0:
        found = _read_at(data, position)
        if found is not None:
            return found
    raise InputError(
        f"{name}: no kallsyms tables found; the kernel needs CONFIG_KALLSYMS and "
        "CONFIG_KALLSYMS_ALL, or a layout this version knows"
    )


def _read_at(data: bytes, digits: int) -> dict[str, int] | None:
    tokens = _find_tokens(data, digits)
    if tokens is None:
        return None
    table_start, index_end, texts = tokens
    for names_start, count in _candidate_names(data, table_start, texts):
        addresses = _addresses(data, names_start - 8, index_end, count)
        if addresses is not None:
            symbols: dict[str, int] = {}
            names = _decode_names(data, names_start, count, texts)
            for text, address in zip(names, addresses, strict=True):
                symbols.setdefault(text, address)
            return symbols
    return None


def _find_tokens(data: bytes, digits: int) -> tuple[int, int, list[bytes]] | None:
    """Start of token_table, end of token_index, and the 256 tokens."""
    start = digits
    for _ in range(ord("0")):
        start = data.rfind(b"\0", 0, start - 1) + 1
        if start <= 0:
            return None
    texts = []
    position = start
    for _ in range(_TOKENS):
        end = data.find(b"\0", position)
        if end < 0:
            return None
        texts.append(data[position:end])
        position = end + 1
    offsets = [0]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text) + 1)
    index = struct.pack(f"<{_TOKENS}H", *(offset & 0xFFFF for offset in offsets))
    index_start = data.find(index, position, position + 64 + len(index))
    if index_start < 0:
        return None
    return start, index_start + len(index), texts


def _candidate_names(
    data: bytes, table_start: int, texts: list[bytes]
) -> Iterator[tuple[int, int]]:
    """Start and number of names wherever a count, as many names and their markers follow."""
    for count_at in range(max(table_start - _MAX_NAMES, 8) & ~7, table_start, 8):
        count = int.from_bytes(data[count_at : count_at + 8], "little")
        if not _MIN_SYMBOLS <= count <= _MAX_SYMBOLS:
            continue
        start = count_at + 8
        first = texts[data[start + 1]][:1]
        if not first.isalpha() or start + 3 * count > table_start:
            continue
        end = _skip_names(data, start, count, table_start)
        if end is None:
            continue
        markers = (end + 7) & ~7
        second = _skip_names(data, start, _PER_MARKER, table_start)
        if second is not None and data[markers : markers + 8] == struct.pack(
            "<II", 0, second - start
        ):
            yield start, count


def _name_at(data: bytes, position: int) -> tuple[int, int]:
    """Where a name's tokens start and end."""
    length = data[position]
    position += 1
    if length & _BIG_NAME:
        length = length & 0x7F | data[position] << 7
        position += 1
    return position, position + length


def _skip_names(data: bytes, start: int, names: int, limit: int) -> int | None:
    """Where `names` names end; None if one is empty or they pass `limit`."""
    position = start
    for _ in range(names):
        length = data[position]
        if not length or position >= limit:
            return None
        position += 1
        if length & _BIG_NAME:
            length = length & 0x7F | data[position] << 7
            position += 1
        position += length
    return position


def _decode_names(data: bytes, start: int, count: int, texts: list[bytes]) -> list[str]:
    """The names without their first character, the symbol's type."""
    names = []
    end = start
    for _ in range(count):
        position, end = _name_at(data, end)
        text = b"".join([texts[token] for token in data[position:end]])
        names.append(text[1:].decode("ascii", "replace"))
    return names


def _addresses(data: bytes, count_at: int, index_end: int, count: int) -> list[int] | None:
    size = 4 * count
    padded = (size + 7) & ~7
    before = count_at - 8
    after = (index_end + 7) & ~7
    for base_at, offsets_at in ((before, before - padded), (after + padded, after)):
        if offsets_at < 0 or base_at + 8 > len(data):
            continue
        (base,) = struct.unpack_from("<Q", data, base_at)
        if base < _KERNEL_START:
            continue
        offsets = struct.unpack_from(f"<{count}i", data, offsets_at)
        if any(offset < 0 for offset in offsets):
            return [offset if offset >= 0 else base - 1 - offset for offset in offsets]
        return [base + offset for offset in offsets]
    return None
