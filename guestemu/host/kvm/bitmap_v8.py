# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap generation, patch set v8 (5 May 2020): the bitmap is sized by the memory slots.

Source: K1-g, K1-i, K1-j, M36, M37, and the patches as posted on 5 May 2020: a slot's creation sizes
the map to the top gfn of all slots; a hypercall that ends above it returns 0 and does nothing; the
MSR's flag is only ever set, and there is no RDMSR of it; the MSR is number 0x4b564d06.
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import EINVAL, ENOTTY
from guestemu.abi.msrs import KVM_MIGRATION_READY
from guestemu.abi.x86 import VECTOR_GP
from guestemu.host.base import GuestFault
from guestemu.host.kvm.bitmap_v6 import BitmapV6Host
from guestemu.host.kvm.historic import LOW_BITS
from guestemu.host.kvm.page_enc_ioctls import get_bitmap, set_bitmap_v8
from guestemu.host.kvm.slot_translation import END_FRAME

SILENT_RANGE = "silent-range"
SET_OFFSET = "set-offset"
MSR_ZERO = "msr-zero"
MSR_READ = "msr-read"


class BitmapV8Host(BitmapV6Host):
    """v8. Repairs: "silent-range" answers a range above the slots with -EINVAL, "set-offset" makes
    SET right for a start that is not a multiple of 64, "msr-zero" lets the guest withdraw its
    consent, "msr-read" gives the MSR back; "end-frame" and "low-bits" as v6.
    """

    name: ClassVar[str] = "bitmap-v8"
    summary: ClassVar[str] = "May 2020 patch set v8: bitmap in KVM, sized by the memory slots"
    switches: ClassVar[tuple[str, ...]] = (
        SILENT_RANGE,
        SET_OFFSET,
        MSR_ZERO,
        MSR_READ,
        END_FRAME,
        LOW_BITS,
    )

    def create_vm(self) -> None:
        """Creates the slot [0, frames)."""
        super().create_vm()
        self._top_gfn = 0
        self.commit_memory_region(0, self.frames)

    def commit_memory_region(self, base_gfn: int, pages: int) -> None:
        """The commit hook for a created slot: the map covers the top gfn of all slots."""
        self._top_gfn = max(self._top_gfn, base_gfn + pages)
        self.bitmap.resize(self._top_gfn)

    def change_status(self, gfn: int, pages: int, enc: int) -> int:
        """K1-g: checks as v6; out of range is silently ignored."""
        if not self.is_sev_guest:
            return -EINVAL
        if not pages:
            return 0
        end = gfn + pages & U64_MASK
        if end <= gfn:
            return -EINVAL
        if not self.slots.accepts(gfn, end):
            return -EINVAL
        if end > self.bitmap.size:
            return -EINVAL if SILENT_RANGE in self.repaired else 0
        self.bitmap.write(gfn, end, enc != 0)
        return 0

    def set_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """KVM_SET_PAGE_ENC_BITMAP; see `set_bitmap_v8`. Not an SEV VM: -ENOTTY.

        A bitmap that was set implies the guest's consent: it was migrated before.
        """
        if not self.is_sev_guest:
            return -ENOTTY
        repaired = SET_OFFSET in self.repaired
        result = set_bitmap_v8(self.bitmap, argument, buffer, repaired=repaired)
        if result == 0 and buffer is not None:
            self.migration_control |= KVM_MIGRATION_READY
        return result

    def get_page_enc_bitmap(self, argument: bytes, buffer: bytearray | None) -> int:
        """As v6, but -EINVAL until the guest set bit 0 of the MSR (K1-i)."""
        if not self.is_sev_guest:
            return -ENOTTY
        if not self.migration_ready:
            return -EINVAL
        return get_bitmap(self.bitmap, argument, buffer)

    def write_control(self, value: int) -> None:
        """Bit 0 sets the flag; as posted nothing clears it."""
        if value & KVM_MIGRATION_READY or MSR_ZERO in self.repaired:
            self.migration_control = value & KVM_MIGRATION_READY

    def read_control(self) -> int:
        """As posted there is no RDMSR of the MSR: #GP."""
        if MSR_READ not in self.repaired:
            raise GuestFault(VECTOR_GP, 0)
        return self.migration_control

    def reset_page_enc_bitmap(self) -> int:
        """The ioctl was dropped in v8 (K1-k): -ENOTTY."""
        return -ENOTTY
