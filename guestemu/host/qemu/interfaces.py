# SPDX-License-Identifier: GPL-2.0-or-later
"""What the migration code of QEMU needs from around it: KVM's page status, guest memory, the SEV
firmware, and a channel.

Memory is named by `RamAddr` (QEMU's ram_addr_t), since QEMU reads pages and hands them to the
firmware through its own mapping of the RAM block and not by GPA (D33, F7): a block that is not
mapped into the guest has bytes all the same. `memory_map.MemoryMap.gpa_of` gives the GPA, if any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from guestemu.abi.addresses import Gfn, RamAddr
from guestemu.abi.errors import GuestemuError

Region = tuple[int, int]
"""(gfn_start, gfn_end) of a shared region, the end exclusive."""


class SendStart(msgspec.Struct, frozen=True):
    """What SEND_START gives to the first encrypted page: guest policy, the source's PDH
    certificate, the session blob (D12)."""

    policy: int
    pdh: bytes
    session: bytes


class SevPacket(msgspec.Struct, frozen=True):
    """What SEND_UPDATE_DATA makes of a page: packet header (52 bytes) and transport data."""

    header: bytes
    data: bytes


class TransportError(GuestemuError):
    """An SEV command of the migration failed: `operation`, the negative errno of the ioctl and the
    firmware's status (0 if the firmware was not reached)."""

    def __init__(self, operation: str, errno: int, firmware_status: int = 0) -> None:
        super().__init__(f"{operation}: error {errno}, firmware status {firmware_status:#x}")
        self.operation = operation
        self.errno = errno
        self.firmware_status = firmware_status


class ChannelError(GuestemuError):
    """The migration channel is broken; the migration fails."""


class Channel(Protocol):
    """Where the source's stream goes to."""

    def write(self, data: bytes) -> object:
        """Takes the next bytes; raises `ChannelError` if the connection is lost."""


class StatusSource(Protocol):
    """KVM's record of the bitmap generations, as KVM_GET_PAGE_ENC_BITMAP gives it (K1-i)."""

    def get_page_enc_bitmap(self, start: Gfn, pages: int) -> bytes:
        """ALIGN(pages, 64) / 8 bytes, little-endian bits, bit 0 for `start`, 1 = encrypted; 1
        beyond KVM's record."""


class StatusSink(Protocol):
    """Takes the page status at the destination."""

    def set_page_enc_bitmap(self, start: Gfn, pages: int, bitmap: bytes | None) -> None:
        """KVM_SET_PAGE_ENC_BITMAP (K1-j); None: every page encrypted (D15)."""

    def set_shared_regions(self, regions: Sequence[Region]) -> None:
        """Replaces the list of shared regions (the 2021 sets)."""


class RegionSource(Protocol):
    """The list of shared regions that user space keeps since 2021 (D19)."""

    @property
    def regions(self) -> Sequence[Region]:
        """The elements as they are now, in list order; what none covers is encrypted."""


class GuestPages(Protocol):
    """The DRAM bytes behind QEMU's RAM blocks: ciphertext for private pages."""

    def read(self, address: RamAddr) -> bytes:
        """The 4096 bytes of the page at `address`."""

    def write(self, address: RamAddr, data: bytes) -> None:
        """Replaces the 4096 bytes of the page at `address`."""


class SevSource(Protocol):
    """KVM_SEV_SEND_* for one guest. Every method raises `TransportError`."""

    def send_start(self) -> SendStart:
        """SEND_START towards the destination whose certificates were given to QEMU."""

    def send_update_data(self, address: RamAddr) -> SevPacket:
        """SEND_UPDATE_DATA of the 4 KiB page at `address`."""

    def send_finish(self) -> None:
        """SEND_FINISH: the firmware's guest is SENT."""

    def send_cancel(self) -> None:
        """SEND_CANCEL: the firmware's guest is RUNNING again."""


class SevDestination(Protocol):
    """KVM_SEV_RECEIVE_* for one guest. Every method raises `TransportError`."""

    def receive_start(self, start: SendStart) -> None:
        """RECEIVE_START with the source's policy, PDH and session."""

    def receive_update_data(self, packet: SevPacket, address: RamAddr) -> None:
        """RECEIVE_UPDATE_DATA of a packet into the 4 KiB page at `address`."""

    def receive_finish(self) -> None:
        """RECEIVE_FINISH: the firmware's guest is RUNNING."""
