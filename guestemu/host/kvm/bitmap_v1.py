# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap generation, patch set v1 (spring 2019): KVM_HC_PAGE_ENC_STATUS is number 11.

Source: K1-a to K1-c, K1-f, K1-i, K1-l, M31, M34. The handler does not test gfn + npages for
wrapping: gfn 2 with npages 2^64-1 resizes the map for one page and then sets bits far beyond it
(Cfir's example). The GET and SET ioctls are those of K1-i and K1-j without a live-migration gate.
"""

from __future__ import annotations

from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import EINVAL, ENOMEM, ENOTTY
from guestemu.abi.hypercalls import KVM_HC_PAGE_ENC_STATUS_2019
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.kvm.historic import LOW_BITS, HistoricHost
from guestemu.host.kvm.page_enc_bitmap import PageEncBitmap
from guestemu.host.kvm.page_enc_ioctls import get_bitmap, set_bitmap_v6

WRAP = "wrap"
GROWTH = "growth"
SET_IOCTL = "set-ioctl"
GET_WORDS = "get-words"


class BitmapV1Host(HistoricHost):
    """v1. Repairs: "wrap" refuses a wrapping range with -EINVAL, "growth" refuses a range beyond
    RAM with -EINVAL (an empty one does nothing), "set-ioctl" makes SET write every bit, "get-words"
    makes GET leave user memory behind the range alone, and "low-bits"."""

    name: ClassVar[str] = "bitmap-v1"
    summary: ClassVar[str] = "2019 patch set v1: bitmap in KVM, hypercall 11, no wrap test"
    switches: ClassVar[tuple[str, ...]] = (WRAP, GROWTH, SET_IOCTL, GET_WORDS, LOW_BITS)
    contract: ClassVar[str] = "page-enc-status-2019"
    number: ClassVar[int] = KVM_HC_PAGE_ENC_STATUS_2019
    opt_in_msrs: ClassVar[frozenset[int]] = frozenset()
    checks_wrap: ClassVar[bool] = False
    """Whether the handler as posted refuses gfn_end <= gfn_start."""

    def create_vm(self) -> None:
        """No bitmap yet; everything counts as encrypted."""
        self.bitmap = PageEncBitmap(self.frames, self.log)

    def change_status(self, gfn: int, pages: int, enc: int) -> int:
        """The handler: not an SEV guest -EINVAL, resize to the exclusive end (-ENOMEM), write."""
        if not self.is_sev_guest:
            return -EINVAL
        end = gfn + pages & U64_MASK
        if pages and end <= gfn and (self.checks_wrap or WRAP in self.repaired):
            return -EINVAL
        if end > self.frames and GROWTH in self.repaired:
            return -EINVAL if pages else 0
        return self.write_status(gfn, pages, enc)

    def write_status(self, gfn: int, pages: int, enc: int) -> int:
        """Resizes and writes; a wrapped range is an out-of-bounds write, recorded and not done."""
        end = gfn + pages & U64_MASK
        if not self.bitmap.resize(end):
            return -ENOMEM
        if end < gfn:
            message = f"bits {gfn:#x} to {gfn + pages - 1:#x} written in a bitmap of {end} bits"
            self.log.add(FindingKind.OUT_OF_BOUNDS, pages + 7 >> 3, message, "K1-c, M31")
            return 0
        self.bitmap.write(gfn, end, enc != 0)
        return 0

    def get_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """KVM_GET_PAGE_ENC_BITMAP; see `get_bitmap`. Not an SEV VM: -ENOTTY."""
        if not self.is_sev_guest:
            return -ENOTTY
        whole_words = GET_WORDS not in self.repaired
        return get_bitmap(self.bitmap, argument, buffer, whole_words=whole_words)

    def set_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """KVM_SET_PAGE_ENC_BITMAP; see `set_bitmap_v6`. Not an SEV VM: -ENOTTY."""
        if not self.is_sev_guest:
            return -ENOTTY
        repaired = SET_IOCTL in self.repaired
        return set_bitmap_v6(self.bitmap, argument, buffer, repaired=repaired)

    def private_map(self) -> bitarray:
        """The bitmap's part for RAM; valid until the next reset."""
        return self.bitmap.ram
