# SPDX-License-Identifier: GPL-2.0-or-later
"""A `Host`'s record, as the migration code asks for it: KVM's bitmap, or a list of regions."""

from __future__ import annotations

from collections.abc import Sequence

from bitarray import bitarray

from guestemu.abi.addresses import Gfn
from guestemu.host.base import Host
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.host.qemu.interfaces import Region
from guestemu.host.userspace.qemu_v4 import QemuV4Host


class HostBitmap:
    """`interfaces.StatusSource` over the private map of any host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def get_page_enc_bitmap(self, start: Gfn, pages: int) -> bytes:
        """Bits of [start, start + pages), ones beyond RAM."""
        bits = bitarray(self._host.private_map()[start : start + pages], endian="little")
        bits.extend([True] * (bitmap_bytes(pages) * 8 - len(bits)))
        return bits.tobytes()


class HostRegions:
    """`interfaces.RegionSource` over a host: the list itself of QEMU's 2021 set, with its own
    defects (D20); of another host the runs of shared frames."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def regions(self) -> Sequence[Region]:
        """See `interfaces.RegionSource`."""
        host = self._host
        if isinstance(host, QemuV4Host):
            return host.qemu.regions
        return shared_runs(host.private_map())


def shared_runs(private: bitarray) -> list[Region]:
    """The runs of zeros as (first gfn, gfn behind)."""
    found: list[Region] = []
    start = private.find(False)
    while start >= 0:
        end = private.find(True, start)
        end = len(private) if end < 0 else end
        found.append((start, end))
        start = private.find(False, end)
    return found
