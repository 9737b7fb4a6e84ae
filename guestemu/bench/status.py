# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of the encryption status of a 1 TiB guest: one notification, and the whole map.

The floor is the plain call of the bitmap library that does the same to the bits.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.bench.figure import Pair
from guestemu.bench.scene import BenchScene
from guestemu.host.kvm.findings import KMALLOC_MAX, FindingLog
from guestemu.host.kvm.page_enc_bitmap import PageEncBitmap
from guestemu.host.kvm.page_enc_ioctls import get_bitmap, pack_argument
from guestemu.host.kvm.run import KvmRun
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.reference import ReferenceUserSpace

TERABYTE: Final = 1 << 40 - PAGE_SHIFT
_FIRST: Final = 0x1000
_CHUNK: Final = KMALLOC_MAX * 8


def _plain_map() -> bitarray:
    bits = bitarray(TERABYTE, endian="little")
    bits.setall(True)
    return bits


def _update(pages: int) -> Pair:
    user_space = ReferenceUserSpace(TERABYTE)
    request = KvmRun()
    request.hypercall.args[:3] = [_FIRST << PAGE_SHIFT, pages, 0]
    vcpu = StandInVcpu()
    bits = _plain_map()

    def run(count: int) -> None:
        handle = user_space.hypercall_exit
        for _ in range(count):
            handle(request, vcpu)

    def assign(count: int) -> None:
        for _ in range(count):
            bits[_FIRST : _FIRST + pages] = 0

    return Pair(run, assign, "bitarray slice assignment")


def one(scene: BenchScene) -> Pair:
    """A notification of 1 page at the reference handler, beside the plain bitmap call."""
    return _update(1)


def leaf(scene: BenchScene) -> Pair:
    """A notification of 512 pages at the reference handler, beside the plain bitmap call."""
    return _update(512)


def million(scene: BenchScene) -> Pair:
    """A notification of 2^20 pages at the reference handler, beside the plain bitmap call."""
    return _update(1 << 20)


def export(scene: BenchScene) -> Pair:
    """KVM_GET_PAGE_ENC_BITMAP of all of a 1 TiB guest, in the largest calls that kmalloc allows;
    beside copying the map out."""
    bitmap = PageEncBitmap(TERABYTE, FindingLog())
    bitmap.resize(TERABYTE)
    bits = _plain_map()
    target = bytearray(TERABYTE // 8)

    def run(count: int) -> None:
        for _ in range(count):
            for start in range(0, TERABYTE, _CHUNK):
                buffer = bytearray(KMALLOC_MAX)
                get_bitmap(bitmap, pack_argument(start, _CHUNK), buffer)
                target[start >> 3 : (start >> 3) + KMALLOC_MAX] = buffer

    def copy(count: int) -> None:
        for _ in range(count):
            target[:] = bits.tobytes()

    return Pair(run, copy, "bitarray.tobytes into a buffer")
