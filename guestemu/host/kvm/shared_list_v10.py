# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared-list generation, patch set v10 (February 2021): KVM keeps a list of shared regions.

Source: K2-a to K2-e, M39 to M41, and the patches as posted on 3 February 2021. Everything is
encrypted but for the listed regions; the list's own return codes (1, -1, 0, -ENOMEM) go to the
guest as the hypercall's result. The MSR is write-only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import E2BIG, EFAULT, EINVAL, ENOMEM, ENOTTY
from guestemu.abi.msrs import KVM_MIGRATION_READY
from guestemu.abi.x86 import VECTOR_GP
from guestemu.host.base import GuestFault
from guestemu.host.kvm.findings import HOST_MEMORY_BOUND, KMALLOC_MAX, FindingKind
from guestemu.host.kvm.historic import LOW_BITS, HistoricHost
from guestemu.host.kvm.pv_msrs import MSR_KVM_ASYNC_PF_ACK, MSR_KVM_WALL_CLOCK_NEW
from guestemu.host.kvm.region_list import (
    Region,
    add_region,
    cut_regions,
    merge_region,
    remove_region,
)
from guestemu.host.kvm.slot_translation import END_FRAME, SlotTranslation

LIST = "list"
RESULT = "result"
GET_RACE = "get-race"
SET_IOCTL = "set-ioctl"
MSR_READ = "msr-read"

NODE_BYTES = 32
"""struct shared_region: a list_head and two u64."""

_ENTRY = struct.Struct("<QQ")


class SharedListV10Host(HistoricHost):
    """v10. Repairs: "list" makes add and remove set union and difference, "result" answers 0
    instead of the count's change, "get-race" counts under the lock, "set-ioctl" makes SET replace
    the list and its reset unlink what it frees, "msr-read" gives the opt-in MSR back; "end-frame"
    and "low-bits" as v6.

    `regions` is the kernel's list in its order, `count` the kernel's `shared_pages_list_count`.
    """

    name: ClassVar[str] = "shared-list-v10"
    summary: ClassVar[str] = "Feb 2021 patch set v10: list of shared regions in KVM"
    switches: ClassVar[tuple[str, ...]] = (
        LIST,
        RESULT,
        GET_RACE,
        SET_IOCTL,
        MSR_READ,
        END_FRAME,
        LOW_BITS,
    )

    pv_msrs: ClassVar[range] = range(MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_ASYNC_PF_ACK + 1)

    def create_vm(self) -> None:
        """An empty list."""
        self.regions: list[Region] = []
        self.count = 0
        self.slots = SlotTranslation(self.frames, repaired=END_FRAME in self.repaired)
        self._is_dangling = False
        self._map: bitarray | None = None

    def change_status(self, gfn: int, pages: int, enc: int) -> int:
        """Checks as v6, then the list function; encrypted removes, shared adds."""
        if not self.is_sev_guest:
            return -EINVAL
        if not pages:
            return 0
        end = gfn + pages & U64_MASK
        if end <= gfn or not self.slots.accepts(gfn, end):
            return -EINVAL
        self._use_list("a hypercall")
        self._map = None
        before = len(self.regions)
        if LIST in self.repaired:
            (cut_regions if enc else merge_region)(self.regions, gfn, end)
            result = len(self.regions) - before
        else:
            result = (remove_region if enc else add_region)(self.regions, gfn, end)
        self.count += result
        self._account()
        return 0 if RESULT in self.repaired else result

    def poison_page(self, gfn: int) -> None:
        """Translating `gfn` fails from now on."""
        self.slots.error_frames.add(gfn)

    def _account(self) -> None:
        """Nodes are charged to the VM's memcg (K2-a), but there is no limit of their number."""
        size = len(self.regions) * NODE_BYTES
        if size > HOST_MEMORY_BOUND:
            message = f"guest made its host keep {len(self.regions)} list nodes, {size} bytes"
            self.log.add(FindingKind.HOST_MEMORY, size, message, "K2-a, C24")

    def _use_list(self, who: str) -> None:
        if self._is_dangling:
            message = f"the list head still points at freed regions; {who} walked them"
            self.log.add(FindingKind.USE_AFTER_FREE, 0, message, "K2-e, M41")
            self._is_dangling = False

    def get_shared_pages_list(
        self, buffer: bytearray | None, size: int, concurrent: Callable[[], None] | None = None
    ) -> tuple[int, int]:
        """KVM_GET_SHARED_PAGES_LIST into `buffer` of `size` bytes: (result, regions written).

        The guest has not opted in, or size 0: -EINVAL; too small: -E2BIG. `concurrent` runs between
        the count, which as posted is read before the lock is taken, and the copy; what it adds is
        written beyond the kernel's buffer (K2-e, M40).
        """
        if not self.is_sev_guest:
            return -ENOTTY, 0
        if not self.migration_ready or size == 0:
            return -EINVAL, 0
        if GET_RACE in self.repaired and concurrent is not None:
            concurrent()
        count = max(self.count, 0)
        if count * _ENTRY.size > size:
            return -E2BIG, 0
        if GET_RACE not in self.repaired and concurrent is not None:
            concurrent()
        self._use_list("KVM_GET_SHARED_PAGES_LIST")
        if len(self.regions) > count:
            excess = (len(self.regions) - count) * _ENTRY.size
            message = f"{excess} bytes written behind a buffer for {count} regions"
            self.log.add(FindingKind.OUT_OF_BOUNDS, excess, message, "K2-e, M40")
        copied = self.regions[:count]
        data = b"".join(_ENTRY.pack(*region) for region in copied)
        if buffer is None or len(buffer) < len(data):
            return -EFAULT, 0
        buffer[: len(data)] = data
        return 0, len(copied)

    def set_shared_pages_list(self, buffer: bytes | None, count: int) -> int:
        """KVM_SET_SHARED_PAGES_LIST of `count` (signed) regions; NULL or 0 resets the list (K2-e).

        As posted the reset frees the regions but leaves them linked, and a list is appended to what
        is there. A count whose bytes kmalloc does not give, a negative one for instance: -ENOMEM.
        """
        if not self.is_sev_guest:
            return -ENOTTY
        self._map = None
        is_repaired = SET_IOCTL in self.repaired
        if buffer is None or count == 0:
            self._is_dangling = bool(self.regions) and not is_repaired
            self.regions.clear()
            self.count = 0
            return 0
        size = count * _ENTRY.size
        if not 0 <= size <= KMALLOC_MAX:
            return -ENOMEM
        if len(buffer) < size:
            return -EFAULT
        self._use_list("KVM_SET_SHARED_PAGES_LIST")
        if is_repaired:
            self.regions.clear()
            self.count = 0
        for start, end in _ENTRY.iter_unpack(buffer[:size]):
            if is_repaired:
                merge_region(self.regions, start, end)
            else:
                self.regions.append((start, end))
        self.count = len(self.regions) if is_repaired else self.count + count
        return 0

    def write_control(self, value: int) -> None:
        """Bit 0 is the flag; other bits are dropped, not refused."""
        self.migration_control = value & KVM_MIGRATION_READY

    def read_control(self) -> int:
        """As posted there is no RDMSR of the MSR: #GP."""
        if MSR_READ not in self.repaired:
            raise GuestFault(VECTOR_GP, 0)
        return self.migration_control

    def private_map(self) -> bitarray:
        """Made from the list: what no region [start, end) covers is encrypted."""
        if self._map is None:
            bits = bitarray(self.frames, endian="little")
            bits.setall(True)
            for start, end in self.regions:
                if start < min(end, self.frames):
                    bits[start : min(end, self.frames)] = False
            self._map = bits
        return self._map
