# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacks what `lzop` made, the format of kernels with CONFIG_KERNEL_LZO.

The file's form is lzop's (lib/decompress_unlzo.c), the stream's LZO1X, as described in
Documentation/staging/lzo.rst. Pure Python: a kernel takes some seconds, and few are packed so.
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"\x89LZO\0\r\n\x1a\n"

_NEW_HEADER: Final = 0x0940
_HAS_FILTER: Final = 0x800
_SUMS_OF_DATA: Final = 0x001 | 0x100
_SUMS_OF_STREAM: Final = 0x002 | 0x200
_AFTER_RUN: Final = 4
_FAR: Final = 0x4000


def unlzop(data: bytes, limit: int) -> bytes:
    """The content of the lzop file `data`, of `limit` bytes at most.

    Raises EOFError for one that ends early or is longer, ValueError for any other file.
    """
    try:
        return _blocks(data, limit)
    except (struct.error, IndexError):
        raise EOFError("the stream ends early") from None


def _blocks(data: bytes, limit: int) -> bytes:
    position = len(MAGIC)
    (version,) = struct.unpack_from(">H", data, position)
    position += 8 if version >= _NEW_HEADER else 5
    (flags,) = struct.unpack_from(">I", data, position)
    position += 8 if flags & _HAS_FILTER else 4
    position += 12 if version >= _NEW_HEADER else 8
    position += 1 + data[position] + 4
    out = bytearray()
    while True:
        (size,) = struct.unpack_from(">I", data, position)
        if not size:
            return bytes(out)
        (packed,) = struct.unpack_from(">I", data, position + 4)
        position += 8 + 4 * (flags & _SUMS_OF_DATA).bit_count()
        if packed < size:
            position += 4 * (flags & _SUMS_OF_STREAM).bit_count()
        if len(out) + size > limit:
            raise EOFError(f"it unpacks to more than {limit >> 20} MiB")
        block = data[position : position + packed]
        if len(block) < packed:
            raise EOFError("the stream ends early")
        content = bytes(block) if packed >= size else _unlzo(block, size)
        if len(content) != size:
            raise ValueError("a block has another size than it says")
        out += content
        position += packed


def _unlzo(data: bytes, size: int) -> bytes:
    """One LZO1X stream of `size` bytes."""
    out = bytearray()
    position, literals = 0, 0
    if data[0] > 17:
        literals = data[0] - 17
        out += data[1 : 1 + literals]
        position = 1 + literals
        literals = min(literals, _AFTER_RUN)
    while len(out) <= size:
        code = data[position]
        position += 1
        if code < 16 and literals == 0:
            length, position = _length(data, position, code, 15)
            out += data[position : position + length + 3]
            position += length + 3
            literals = _AFTER_RUN
            continue
        if code < 16:
            tail = code
            start = 2049 if literals == _AFTER_RUN else 1
            distance = (data[position] << 2) + (code >> 2) + start
            length = 3 if literals == _AFTER_RUN else 2
            position += 1
        elif code < 64:
            mask = 7 if code < 32 else 31
            length, position = _length(data, position, code & mask, mask)
            length += 2
            (word,) = struct.unpack_from("<H", data, position)
            position += 2
            tail = word
            distance = (word >> 2) + 1
            if code < 32:
                distance += _FAR - 1 + ((code & 8) << 11)
                if distance == _FAR:
                    return bytes(out)
        else:
            tail = code
            length = (code >> 5) + 1 if code >= 128 else 3 + (code >> 5 & 1)
            distance = (data[position] << 3) + (code >> 2 & 7) + 1
            position += 1
        if distance > len(out):
            raise ValueError("a match lies before the start")
        start = len(out) - distance
        if distance >= length:
            out += out[start : start + length]
        else:
            pattern = bytes(out[start:])
            out += (pattern * (length // distance + 1))[:length]
        literals = tail & 3
        out += data[position : position + literals]
        position += literals
    raise ValueError("a block is longer than it says")


def _length(data: bytes, position: int, bits: int, mask: int) -> tuple[int, int]:
    """A length whose `bits` are 0 goes on behind: 255 for each NUL, and the byte that ends them."""
    if bits:
        return bits, position
    length = mask
    while not data[position]:
        length += 255
        position += 1
    return length + data[position], position + 1
