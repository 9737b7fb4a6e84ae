# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU with the never-merged patch set v4 of August 2021, over merged KVM.

Source: D19, D20, D22, D24, M53 to M57: AMDESE/qemu, branch sev_live_migration_v4_1.
"""

from __future__ import annotations

from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.host import MergedHost
from guestemu.host.kvm.region_list import Region, cut_regions, merge_region
from guestemu.host.kvm.run import KvmRun
from guestemu.host.userspace.base import UserSpace
from guestemu.host.userspace.injection import Injection
from guestemu.host.userspace.qemu_list import add_qemu_region, remove_qemu_region

ATTRIBUTES_WORD: Final = "attributes-word"
LIST: Final = "list"
STALE_RET: Final = "stale-ret"
MSR_ZERO: Final = "msr-zero"


class QemuV4UserSpace(UserSpace):
    """The handlers. `regions` is the list, `is_blocked` the migration blocker.

    `repaired`: "attributes-word" reads bit 4 of the attributes instead of the whole word; "list"
    makes add and remove set operations; "stale-ret" writes run->hypercall.ret; "msr-zero" makes
    writing 0 add the blocker again and reserved bits an error.
    """

    touches_vcpu: ClassVar[bool] = False

    __slots__ = ("_repaired", "_state", "_version", "injection", "is_blocked", "msr", "regions")

    def __init__(self, repaired: frozenset[str]) -> None:
        self._repaired = repaired
        self._state = 0
        self._version = 0
        self.regions: list[Region] = []
        self.is_blocked = True
        self.msr = 0
        self.injection = Injection()

    @property
    def version(self) -> int:
        """Grows with every change of the list."""
        return self._version

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """D19: any non-zero attributes word means encrypted; `ret` is left as it is."""
        request = run.hypercall
        if self.injection.answers:
            self._state = 1
            request.ret = self.injection.take_answer()
            return
        start = request.args[0] >> PAGE_SHIFT
        end = start + request.args[1]
        attributes = request.args[2]
        if ATTRIBUTES_WORD in self._repaired:
            attributes &= MAP_GPA_RANGE_ENCRYPTED
        self._version += 1
        if LIST in self._repaired:
            (cut_regions if attributes else merge_region)(self.regions, start, end)
        elif attributes:
            remove_qemu_region(self.regions, start, end)
        else:
            add_qemu_region(self.regions, start, end)
        self._state = 2 + bool(attributes)
        if STALE_RET in self._repaired:
            request.ret = 0

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """D24: gives back a variable of QEMU's; another index is an error."""
        if run.msr.index != MSR_KVM_MIGRATION_CONTROL or self.injection.take_msr_error():
            run.msr.error = 1
        else:
            run.msr.data = self.msr

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """D24: exactly READY removes the blocker, and nothing ever adds it again."""
        access = run.msr
        if access.index != MSR_KVM_MIGRATION_CONTROL or self.injection.take_msr_error():
            access.error = 1
            return
        if MSR_ZERO in self._repaired:
            if access.data & ~KVM_MIGRATION_READY:
                access.error = 1
                return
            self.is_blocked = not access.data
        elif access.data == KVM_MIGRATION_READY:
            self.is_blocked = False
        self.msr = access.data

    @property
    def state(self) -> int:
        """1 ordered answer, 2 shared, 3 encrypted."""
        return self._state


class QemuV4Host(MergedHost):
    """Merged KVM under QEMU with the August 2021 patch set; repairs as `QemuV4UserSpace`."""

    name: ClassVar[str] = "qemu-v4"
    summary: ClassVar[str] = "merged ABI under QEMU's August 2021 patch set: list of shared regions"
    contract_state: ClassVar[bool] = True
    switches: ClassVar[tuple[str, ...]] = (ATTRIBUTES_WORD, LIST, STALE_RET, MSR_ZERO)

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """QEMU with an empty list and the migration blocker in place."""
        self.qemu = QemuV4UserSpace(self.repaired)
        self._frames = frames
        self._map = bitarray(frames, endian="little")
        self._map.setall(True)
        self._map_version = 0
        return self.qemu, self.qemu.injection

    def private_map(self) -> bitarray:
        """Made from the list: what no region covers is encrypted."""
        if self._map_version != self.qemu.version:
            self._map_version = self.qemu.version
            self._map.setall(True)
            for start, end in self.qemu.regions:
                if start < min(end, self._frames):
                    self._map[start : min(end, self._frames)] = False
        return self._map

    @property
    def migration_ready(self) -> bool:
        """Whether the migration blocker is gone."""
        return not self.qemu.is_blocked
