# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap generation, patch set v6 (30 March 2020): number 12, opt-in MSR, RESET ioctl.

Source: K1-e (the exact order of checks), K1-f, K1-i, K1-j, K1-k, K1-m, M33 to M35, and the patches
as posted on 30 March 2020: patch 13 refuses the hypercall, not the GET ioctl, until the guest wrote
the opt-in MSR, which has the number 0x4b564d06 there (K1-i has the test in GET).
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import EINVAL, ENOTTY
from guestemu.abi.hypercalls import KVM_HC_PAGE_ENC_STATUS
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL, MSR_KVM_SEV_LIVE_MIG_EN_2020
from guestemu.host.kvm.bitmap_v1 import GROWTH, SET_IOCTL, BitmapV1Host
from guestemu.host.kvm.historic import LOW_BITS
from guestemu.host.kvm.page_enc_ioctls import get_bitmap
from guestemu.host.kvm.slot_translation import END_FRAME, SlotTranslation

GATE = "gate"


class BitmapV6Host(BitmapV1Host):
    """v6. Repairs: "gate" moves the opt-in test from the hypercall, where it loses what a guest
    says before it opts in, to the GET ioctl, as v8 has it; "end-frame" translates the last page
    instead of the one behind it and releases the references; "growth", "set-ioctl", "low-bits" as
    v1. `slots` translates the ends of a range.
    """

    name: ClassVar[str] = "bitmap-v6"
    summary: ClassVar[str] = "March 2020 patch set v6: bitmap in KVM that grows with the hypercall"
    switches: ClassVar[tuple[str, ...]] = (GATE, END_FRAME, GROWTH, SET_IOCTL, LOW_BITS)
    contract: ClassVar[str] = "page-enc-status"
    number: ClassVar[int] = KVM_HC_PAGE_ENC_STATUS
    opt_in_msrs: ClassVar[frozenset[int]] = frozenset(
        {MSR_KVM_SEV_LIVE_MIG_EN_2020, MSR_KVM_MIGRATION_CONTROL}
    )

    def create_vm(self) -> None:
        """No bitmap yet."""
        super().create_vm()
        self.slots = SlotTranslation(self.frames, repaired=END_FRAME in self.repaired)

    def change_status(self, gfn: int, pages: int, enc: int) -> int:
        """K1-e 1 to 8, the opt-in test behind the first; a gfn without a slot (MMIO) is allowed."""
        if not self.is_sev_guest:
            return -EINVAL
        if not self.migration_ready and GATE not in self.repaired:
            return -ENOTTY
        if not pages:
            return 0
        end = gfn + pages & U64_MASK
        if end <= gfn:
            return -EINVAL
        if GROWTH in self.repaired and end > self.frames:
            return -EINVAL
        if not self.slots.accepts(gfn, end):
            return -EINVAL
        return self.write_status(gfn, pages, enc)

    def get_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """See `get_bitmap`. With "gate" repaired -ENOTTY until the guest opted in (K1-i)."""
        if not self.is_sev_guest or (GATE in self.repaired and not self.migration_ready):
            return -ENOTTY
        return get_bitmap(self.bitmap, argument, buffer)

    def poison_page(self, gfn: int) -> None:
        """Translating `gfn` fails from now on."""
        self.slots.error_frames.add(gfn)

    def reset_page_enc_bitmap(self) -> int:
        """KVM_PAGE_ENC_BITMAP_RESET (K1-k): everything encrypted, for a reboot."""
        if not self.is_sev_guest:
            return -ENOTTY
        self.bitmap.forget()
        return 0
