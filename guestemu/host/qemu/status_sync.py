# SPDX-License-Identifier: GPL-2.0-or-later
"""Storing KVM's page status bitmap in QEMU's map: the posted routines, defect by defect.

Maps and bitmaps are little-endian bitarrays in pages, 1 = encrypted. Source: D4 to D6, D8 (2019),
D10, D11 (2020): cpu_physical_memory_set_encrypted_lebitmap() and ..._range().
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray
from bitarray.util import ba2int, int2ba

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK, to_signed
from guestemu.host.qemu.patch_sets import QemuDefect

WORD: Final = 64
_RANGE_2020: Final = frozenset({QemuDefect.MASK, QemuDefect.BYTE_PAGE, QemuDefect.VALUE_SHIFT})


def counted_pages(pages: int, defects: frozenset[QemuDefect]) -> int:
    """`pages` as the posted code counts them: in an int, so 2^31 and more are negative (D8)."""
    return to_signed(pages, 32) if QemuDefect.INT_PAGES in defects else pages


def store_bitmap(
    status: bitarray, bitmap: bitarray, start: int, pages: int, defects: frozenset[QemuDefect]
) -> None:
    """Stores the first `pages` bits of `bitmap` into `status` from page `start` of ram_addr_t on.

    `bitmap` is whole words; a posted routine that reads behind its end gets ones (what a kernel
    buffer was filled with, K1-i), and what it writes behind the end of `status` is dropped.
    """
    pages = counted_pages(pages, defects)
    if pages <= 0:
        return
    if start % WORD == 0:
        _store_aligned(status, bitmap, start, pages, defects)
    elif QemuDefect.UNALIGNED_STRIDE in defects:
        for index in range((pages + WORD - 1) // WORD):
            word = (start + index) // WORD
            _put(status, word * WORD, _word(bitmap, index))
    elif defects & _RANGE_2020:
        _store_2020(status, bitmap, start, pages, defects)
    else:
        _put(status, start, _padded(bitmap, 0, pages))


def _store_aligned(
    status: bitarray, bitmap: bitarray, start: int, pages: int, defects: frozenset[QemuDefect]
) -> None:
    """D4: word by word, `if (bitmap[k])`; the last word whole."""
    for index in range((pages + WORD - 1) // WORD):
        word = _word(bitmap, index)
        if QemuDefect.ZERO_WORD in defects and not word.any():
            continue
        if QemuDefect.TAIL_BITS not in defects:
            word = word[: pages - index * WORD]
        _put(status, start + index * WORD, word)


def _store_2020(
    status: bitarray, bitmap: bitarray, start: int, pages: int, defects: frozenset[QemuDefect]
) -> None:
    """D10: word by word through `_store_range`, which returns where it believes to be."""
    address = start << PAGE_SHIFT
    for index in range((pages + WORD - 1) // WORD):
        length = min(WORD, pages - index * WORD)
        value = ba2int(_word(bitmap, index))
        address = _store_range(status, address, length, value, defects)


def _store_range(
    status: bitarray, address: int, pages: int, value: int, defects: frozenset[QemuDefect]
) -> int:
    """...set_encrypted_range(start, length, value) as posted: `address` in bytes, `pages` <= 64.

    A shift by 64 does what x86 does: nothing.
    """
    while pages > 0:
        is_mixed = QemuDefect.BYTE_PAGE in defects
        position = address % WORD if is_mixed else (address >> PAGE_SHIFT) % WORD
        count = min(pages, WORD - position)
        shift = count if QemuDefect.MASK in defects else WORD - count
        mask = (U64_MASK >> shift % WORD) << position & U64_MASK
        bits = value if QemuDefect.VALUE_SHIFT in defects else value << position & U64_MASK
        first = (address >> PAGE_SHIFT) // WORD * WORD
        old = ba2int(_padded(status, first, first + WORD))
        new = old & ~mask | bits & mask
        _put(status, first, int2ba(new, WORD, endian="little"))
        address += count if is_mixed else count << PAGE_SHIFT
        value >>= count
        pages -= count
    return address


def is_encrypted(status: bitarray, page: int, defects: frozenset[QemuDefect]) -> bool:
    """Whether `page` counts as encrypted; as posted in 2019 if its word is not 0 (D6)."""
    if QemuDefect.WORD_TEST in defects:
        first = page // WORD * WORD
        return status[first : first + WORD].any()
    return bool(status[page])


def whole_words(status: bitarray) -> bitarray:
    """`is_encrypted` of every page as posted in 2019: a word counts as a whole (D6)."""
    found = bitarray(len(status), endian="little")
    for first in range(0, len(status), WORD):
        found[first : first + WORD] = status[first : first + WORD].any()
    return found


def _padded(bits: bitarray, start: int, end: int) -> bitarray:
    """bits[start:end], ones where there are none."""
    found = bits[start:end]
    found.extend([True] * (end - start - len(found)))
    return found


def _word(bits: bitarray, index: int) -> bitarray:
    return _padded(bits, index * WORD, (index + 1) * WORD)


def _put(status: bitarray, start: int, bits: bitarray) -> None:
    """Overwrites, never grows."""
    room = max(0, len(status) - start)
    status[start : start + min(room, len(bits))] = bits[:room]
