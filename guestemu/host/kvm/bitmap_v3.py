# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap generation, patch set v3 (July/August 2019): wrap test, and a reset that goes wrong.

Source: K1-d, M32. Every reset of any vCPU frees the bitmap and sets its size to 0 but keeps the
pointer, without a lock: the record is lost, and the next resize frees the old pointer again.
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.host.kvm.bitmap_v1 import GET_WORDS, GROWTH, SET_IOCTL, BitmapV1Host
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.kvm.historic import LOW_BITS
from guestemu.host.kvm.page_enc_bitmap import PageEncBitmap

VCPU_RESET = "vcpu-reset"


class BitmapV3Host(BitmapV1Host):
    """v3. Repairs: "vcpu-reset" leaves the VM's bitmap alone when a vCPU is reset; the rest as v1.

    The testbed calls `reset_vcpu` where a vCPU is reset after the VM was built (INIT of an AP).
    """

    name: ClassVar[str] = "bitmap-v3"
    summary: ClassVar[str] = "2019 patch set v3: bitmap in KVM, freed at every vCPU reset"
    switches: ClassVar[tuple[str, ...]] = (
        VCPU_RESET,
        GROWTH,
        SET_IOCTL,
        GET_WORDS,
        LOW_BITS,
    )
    checks_wrap: ClassVar[bool] = True

    def create_vm(self) -> None:
        """No bitmap yet; the resets of vCPU creation free nothing."""
        super().create_vm()
        self._is_dangling = False

    def reset_vcpu(self) -> None:
        """The per-vCPU reset hook: kvfree, size 0, pointer kept (K1-d)."""
        if VCPU_RESET in self.repaired:
            return
        had_bitmap = self.bitmap.size > 0
        if self._is_dangling:
            self._report("freed again by a second vCPU reset")
        self._is_dangling = self._is_dangling or had_bitmap
        self.bitmap = PageEncBitmap(self.frames, self.log)

    def write_status(self, gfn: int, pages: int, enc: int) -> int:
        """A resize after a reset frees the dangling pointer once more."""
        end = gfn + pages
        result = super().write_status(gfn, pages, enc)
        if self._is_dangling and end > 0 and result == 0:
            self._report("freed again by the next resize")
            self._is_dangling = False
        return result

    def _report(self, how: str) -> None:
        message = f"page_enc_bmap, freed by a vCPU reset, was {how}"
        self.log.add(FindingKind.USE_AFTER_FREE, 0, message, "K1-d, M32")
