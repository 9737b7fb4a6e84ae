# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table that a kernel carries for itself (kernel/kallsyms.c, scripts/kallsyms.c).

Names are compressed: each is a length and that many one-byte tokens. The tables have no header.
Each starts on an alignment of 8 bytes (up to 6.19) or 4 (from 7.0); they are found by their
structure and that alignment, and accepted only if they agree with each other:

    token_table   256 strings, one after the other; the ten digits are tokens of their own
    token_index   256 16-bit offsets into it, the first 0
    num_syms      a 32-bit count, just before the names
    markers       32-bit offset of every 256th name, the first 0; just behind the names
    offsets       one for each symbol, in the order of addresses: before num_syms (up to 6.3), or
                  after token_index (from 6.4)
    relative_base behind the offsets (up to 6.19)

With CONFIG_KALLSYMS_ABSOLUTE_PERCPU (x86-64 up to 6.14) an offset >= 0 is the address itself, a
negative one means relative_base - 1 - offset; without it the offset is added to relative_base. From
7.0 it is added to the address of its own place, and there is no base.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from guestemu.abi.errors import InputError

_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_BEFORE_DIGITS: Final = ord("0")
_TOKENS: Final = 256
_MAX_TOKEN: Final = 1 << 7
_PER_MARKER: Final = 256
_KERNEL_START: Final = 0xFFFF_FFFF_8000_0000
_BIG_NAME: Final = 0x80
_MIN_SYMBOLS: Final = 1 << 10
_MAX_SYMBOLS: Final = 1 << 20
_MIN_NAME: Final = 2
_MAX_NAMES: Final = 16 << 20
_ALIGNMENTS: Final = (8, 4)
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_PER_TABLE: Final = 1 << 14
_MAX_STEPS: Final = 1 << 22
"""Names, about, that a search looks at. A kernel has one token table, and few words in front of it
that could be num_syms; a file that was made to have thousands is not searched to its end."""
_MAX_NAME: Final = 1024
"""KSYM_NAME_LEN is 512."""


class _Effort:
    """Counts what a search may still look at; `spend` says whether it may go on."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def spend(self, steps: int) -> bool:
        self._left -= steps
        return self._left >= 0


def read_kallsyms(data: bytes, address: int, name: str) -> dict[str, int]:
    """Address of every symbol in `data`, the kernel's read-only data section, linked at `address`.

    A name that occurs more than once keeps its first address. `name` is the image's, for errors.
    Raises `InputError` where the tables are not found.
    """
    position = -1
    effort = _Effort()
    while (position := data.find(_DIGITS, position + 1)) >= 0 and effort.spend(_PER_TABLE):
        for table_start, index_end, texts in _token_tables(data, position):
            found = _read_at(data, address, table_start, index_end, texts, effort)
            if found is not None:
                return found
    raise InputError(
        f"{name}: no kallsyms tables found; the kernel needs CONFIG_KALLSYMS=y and "
        "CONFIG_KALLSYMS_ALL=y, a layout that this version knows"
    )


def _read_at(
    data: bytes,
    address: int,
    table_start: int,
    index_end: int,
    texts: list[bytes],
    effort: _Effort,
) -> dict[str, int] | None:
    for names_start, count, alignment in _candidate_names(data, table_start, texts, effort):
        addresses = _addresses(data, address, (names_start - alignment, index_end), count)
        if addresses is not None:
            symbols: dict[str, int] = {}
            names = _decode_names(data, names_start, count, texts)
            for text, value in zip(names, addresses, strict=True):
                symbols.setdefault(text, value)
            return symbols
    return None


def _align(position: int, alignment: int) -> int:
    return (position + alignment - 1) & -alignment


def _token_tables(data: bytes, digits: int) -> Iterator[tuple[int, int, list[bytes]]]:
    """Start of token_table, end of token_index and the 256 tokens, for every token_table around the
    ten digits at `digits` that token_index agrees with.

    The byte in front of the table need not be NUL: the table before it may end on the boundary. So
    its first token may start at every aligned place down to that token's longest.
    """
    second = digits
    for _ in range(_BEFORE_DIGITS - 1):
        second = data.rfind(b"\0", 0, second - 1) + 1
        if second <= 0:
            return
    texts = [b""]
    position = second
    for _ in range(_TOKENS - 1):
        end = data.find(b"\0", position)
        if end < 0:
            return
        texts.append(data[position:end])
        position = end + 1
    first_end = second - 1
    for start in range(first_end & ~3, max(first_end - _MAX_TOKEN, 0) - 1, -4):
        if b"\0" in data[start:first_end]:
            return
        texts[0] = data[start:first_end]
        offsets = [0]
        for text in texts[:-1]:
            offsets.append(offsets[-1] + len(text) + 1)
        index = struct.pack(f"<{_TOKENS}H", *(offset & 0xFFFF for offset in offsets))
        for alignment in _ALIGNMENTS:
            index_start = _align(position, alignment)
            if start % alignment == 0 and data.startswith(index, index_start):
                yield start, index_start + len(index), texts.copy()
                break


def _candidate_names(
    data: bytes, table_start: int, texts: list[bytes], effort: _Effort
) -> Iterator[tuple[int, int, int]]:
    """Start, number and alignment of names wherever a count, as many names and their markers
    follow, up to the token table at `table_start`; the nearest first."""
    first = max(table_start - _MAX_NAMES, 0) & ~3
    words = memoryview(data)[first : table_start & ~3].cast("I")
    for index in range(len(words) - 1, -1, -1):
        count = words[index]
        if not _MIN_SYMBOLS <= count <= _MAX_SYMBOLS:
            continue
        count_at = first + 4 * index
        for alignment in _ALIGNMENTS:
            start = count_at + alignment
            if (count_at | table_start) % alignment or start + _MIN_NAME * count > table_start:
                continue
            if texts[data[start + 1]][:1].isalpha() and any(
                _has_names(data, start, count, markers, alignment, effort)
                for markers in _marker_places(table_start, count, alignment)
            ):
                yield start, count, alignment


def _marker_places(table_start: int, count: int, alignment: int) -> tuple[int, int]:
    """Where the markers of `count` names are: just before the token table, or before the order of
    the names (kallsyms_seqs_of_names, three bytes each) that is there in 6.2 and 6.3."""
    size = _align(4 * -(-count // _PER_MARKER), alignment)
    last = table_start - size
    return last, last - _align(3 * count, alignment)


def _has_names(
    data: bytes, start: int, count: int, markers: int, alignment: int, effort: _Effort
) -> bool:
    """Whether `count` names start at `start` and end where their `markers` are."""
    if markers < start or data[markers : markers + 4] != bytes(4):
        return False
    if not effort.spend(_PER_MARKER):
        return False
    second = _skip_names(data, start, _PER_MARKER, markers)
    if second is None or not data.startswith(struct.pack("<I", second - start), markers + 4):
        return False
    if not effort.spend(count):
        return False
    end = _skip_names(data, start, count, markers)
    return end is not None and _align(end, alignment) == markers


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
        if position >= limit or not data[position]:
            return None
        length = data[position]
        position += 1
        if length & _BIG_NAME:
            length = length & 0x7F | data[position] << 7
            position += 1
        position += length
    return position


def _decode_names(data: bytes, start: int, count: int, texts: list[bytes]) -> list[str]:
    """The names without their first character, the symbol's type."""
    words = [text.decode("ascii", "replace") for text in texts]
    names = []
    end = start
    for _ in range(count):
        position, end = _name_at(data, end)
        names.append("".join([words[token] for token in data[position:end]])[1:_MAX_NAME])
    return names


def _addresses(
    data: bytes, address: int, ends: tuple[int, int], count: int
) -> Sequence[int] | None:
    """The addresses of `count` symbols, from the table that lies before or behind `ends`, the
    places of num_syms and behind token_index; None if there is no table in any layout.

    The kernel finds the symbol of an address by bisection: addresses that are not in order are not
    its table.
    """
    count_at, index_end = ends
    size = 4 * count
    after = _align(index_end, 8)
    places = (
        (count_at - 8 - _align(size, 8), count_at - 8),
        (after, after + _align(size, 8)),
        (_align(index_end, 4), None),
    )
    for offsets_at, base_at in places:
        if offsets_at < 0 or max(offsets_at + size, (base_at or 0) + 8) > len(data):
            continue
        offsets = struct.unpack_from(f"<{count}i", data, offsets_at)
        addresses: Sequence[int] = ()
        if base_at is None:
            place = address + offsets_at
            addresses = [place + 4 * index + value & _U64 for index, value in enumerate(offsets)]
        else:
            (base,) = struct.unpack_from("<Q", data, base_at)
            if base >= _KERNEL_START:
                addresses = _from_base(offsets, base)
        if addresses and addresses[-1] >= _KERNEL_START and _is_sorted(addresses):
            return addresses
    return None


def _from_base(offsets: Sequence[int], base: int) -> list[int]:
    if any(offset < 0 for offset in offsets):
        return [offset if offset >= 0 else base - 1 - offset for offset in offsets]
    return [base + offset for offset in offsets]


def _is_sorted(values: Sequence[int]) -> bool:
    return all(map(operator.le, values, values[1:]))
