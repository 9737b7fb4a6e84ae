# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_PAGE_ENC_BITMAP and KVM_SET_PAGE_ENC_BITMAP of the bitmap generations.

Both take struct kvm_page_enc_bitmap { u64 start_gfn; u64 num_pages; union { void *enc_bitmap;
u64 padding; } }, 24 bytes (K1-i). User memory is a bytearray that is changed in place, None for a
NULL pointer; results are 0 or a negative errno.
"""

from __future__ import annotations

import struct
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import EFAULT, ENOMEM
from guestemu.host.kvm.findings import KMALLOC_MAX
from guestemu.host.kvm.page_enc_bitmap import PageEncBitmap, bitmap_bytes

ARGUMENT: Final = struct.Struct("<QQQ")


def pack_argument(start_gfn: int, num_pages: int) -> bytes:
    """The ioctl's argument; the pointer is 0, user memory is passed beside it."""
    return ARGUMENT.pack(start_gfn, num_pages, 0)


def unpack_argument(argument: bytes) -> tuple[int, int] | None:
    """(start_gfn, num_pages), or None where copying the 24 bytes would fault."""
    if len(argument) < ARGUMENT.size:
        return None
    start_gfn, num_pages, _ = ARGUMENT.unpack_from(argument)
    return start_gfn, num_pages


def copy_out(bits: bitarray, buffer: bytearray | None) -> int:
    """Copies `bits` to user memory; a last partial byte keeps the user's upper bits (K1-i, M38)."""
    size = (len(bits) + 7) // 8
    if buffer is None or len(buffer) < size:
        return -EFAULT
    tail = len(bits) % 8
    kept = buffer[size - 1] if tail else 0
    buffer[:size] = memoryview(bits)
    if tail:
        mask = (1 << tail) - 1
        buffer[size - 1] = buffer[size - 1] & mask | kept & ~mask & 0xFF
    return 0


def get_bitmap(
    bitmap: PageEncBitmap, argument: bytes, buffer: bytearray | None, *, whole_words: bool = False
) -> int:
    """KVM_GET_PAGE_ENC_BITMAP (K1-i): -ENOMEM for more bits than kmalloc gives, -EFAULT.

    `whole_words`: the form up to the repost of February 2020, which writes whole 64-bit words to
    user memory, ones behind the range. Since v6 only the bits asked for change.
    """
    request = unpack_argument(argument)
    if request is None:
        return -EFAULT
    start_gfn, num_pages = request
    if bitmap_bytes(num_pages) > KMALLOC_MAX:
        return -ENOMEM
    bits = bitmap.read(start_gfn, num_pages)
    if whole_words:
        bits.extend([True] * (-num_pages % 64))
    return copy_out(bits, buffer)


def _copy_in(num_pages: int, buffer: bytearray | None) -> bitarray | int:
    """The user's bitmap, whole 64-bit words of it, or -ENOMEM, -EFAULT."""
    size = bitmap_bytes(num_pages)
    if size > KMALLOC_MAX:
        return -ENOMEM
    if buffer is None or len(buffer) < size:
        return -EFAULT
    bits = bitarray(endian="little")
    bits.frombytes(bytes(buffer[:size]))
    return bits


def set_bitmap_v6(
    bitmap: PageEncBitmap, argument: bytes, buffer: bytearray | None, *, repaired: bool
) -> int:
    """KVM_SET_PAGE_ENC_BITMAP as in v4 to v6 (K1-j, M35).

    As posted the scan for zero bits starts at index start_gfn of a buffer whose bit 0 is start_gfn,
    and bits are only ever cleared. Repaired: every bit of the range takes the user's value.
    """
    request = unpack_argument(argument)
    if request is None:
        return -EFAULT
    start_gfn, num_pages = request
    bits = _copy_in(num_pages, buffer)
    if isinstance(bits, int):
        return bits
    if not bitmap.resize(start_gfn + num_pages & U64_MASK):
        return -ENOMEM
    if repaired:
        _write_bits(bitmap, start_gfn, bits[:num_pages])
        return 0
    for index in bits.search(bitarray("0"), min(start_gfn, num_pages), num_pages):
        bitmap.write(start_gfn + index, start_gfn + index + 1, False)
    return 0


def set_bitmap_v8(
    bitmap: PageEncBitmap, argument: bytes, buffer: bytearray | None, *, repaired: bool
) -> int:
    """KVM_SET_PAGE_ENC_BITMAP as in v8 (K1-j, M36): a NULL buffer resets everything to encrypted.

    As posted the words go to the map from word start_gfn / 64 on, so a start that is not a multiple
    of 64 shifts them, and all bits of the last word are written. The map grows as needed.
    """
    request = unpack_argument(argument)
    if request is None:
        return -EFAULT
    if buffer is None:
        bitmap.forget()
        return 0
    start_gfn, num_pages = request
    bits = _copy_in(num_pages, buffer)
    if isinstance(bits, int):
        return bits
    if not bitmap.resize(start_gfn + num_pages & U64_MASK):
        return -ENOMEM
    if repaired:
        _write_bits(bitmap, start_gfn, bits[:num_pages])
    else:
        first = start_gfn // 64 * 64
        _write_bits(bitmap, first, bits[: bitmap.size - first])
    return 0


def _write_bits(bitmap: PageEncBitmap, start: int, bits: bitarray) -> None:
    """Writes `bits` from gfn `start` on, run by run."""
    position = 0
    while position < len(bits):
        value = bits[position]
        end = bits.find(not value, position)
        if end < 0:
            end = len(bits)
        bitmap.write(start + position, start + end, bool(value))
        position = end
