# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU 10.2 over merged KVM: the exit converts guest_memfd memory, SEV migration stays blocked.

Source: D26, D27, M58: target/i386/kvm/kvm.c, accel/kvm/kvm-all.c `kvm_convert_memory`. The machine
modelled uses guest_memfd (one without it stops the VM at every such exit) and has one RAM region
from GPA 0 on, with nothing behind it.
"""

from __future__ import annotations

from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.host import MergedHost
from guestemu.host.kvm.run import KvmRun
from guestemu.host.userspace.base import UserSpace, VmStopped
from guestemu.host.userspace.injection import Injection

STALE_RET: Final = "stale-ret"
SIZE_WRAP: Final = "size-wrap"
SECTION: Final = "section"
STOPS_VM: Final = "stops-vm"


class Qemu102UserSpace(UserSpace):
    """The exit handler; `attributes` has the frames that KVM holds as private (1) or shared (0).

    `repaired`: "stale-ret" writes run->hypercall.ret; "size-wrap" refuses a size that does not fit
    64 bits; "section" clips the conversion to the memory region found; "stops-vm" answers a bad
    request with -KVM_EINVAL instead of stopping the VM. Raises `VmStopped` where QEMU returns an
    error from its exit handler.
    """

    touches_vcpu: ClassVar[bool] = False

    __slots__ = ("_frames", "_repaired", "_state", "attributes", "injection")

    def __init__(self, frames: int, repaired: frozenset[str]) -> None:
        self._frames = frames
        self._repaired = repaired
        self._state = 0
        self.attributes = bitarray(frames, endian="little")
        self.attributes.setall(True)
        self.injection = Injection()

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """D27; `ret` is never written, so the guest sees 0 or stale bytes (M22)."""
        request = run.hypercall
        if self.injection.answers:
            self._state = 1
            request.ret = self.injection.take_answer()
            return
        result = -EINVAL
        if request.nr == KVM_HC_MAP_GPA_RANGE:
            result = self._convert(request.args[0], request.args[1], request.args[2])
        if result and STOPS_VM not in self._repaired:
            self._state = 2
            raise VmStopped(
                f"QEMU stopped the VM: exit {request.nr}, gpa {request.args[0]:#x}, "
                f"{request.args[1]:#x} pages, attributes {request.args[2]:#x}: error {result}"
            )
        self._state = 3 if result else 4
        if STALE_RET in self._repaired or result:
            request.ret = result & U64_MASK

    def _convert(self, gpa: int, pages: int, attributes: int) -> int:
        """kvm_convert_memory: 0 or a negative errno."""
        size = pages << PAGE_SHIFT
        if size > U64_MASK and SIZE_WRAP in self._repaired:
            return -EINVAL
        size &= U64_MASK
        is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        if gpa & PAGE_MASK or size & PAGE_MASK or not size:
            return -EINVAL
        first = gpa >> PAGE_SHIFT
        if first >= self._frames:
            return -EINVAL if is_private else 0
        end = first + (size >> PAGE_SHIFT)
        if SECTION not in self._repaired and end > 1 << 52:
            return -EINVAL
        self.attributes[first : min(end, self._frames)] = is_private
        return 0

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """QEMU 10.2 has no handler for MIGRATION_CONTROL: an error."""
        self.injection.take_msr_error()
        run.msr.error = 1

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """QEMU 10.2 has no handler for MIGRATION_CONTROL: an error."""
        self.injection.take_msr_error()
        run.msr.error = 1

    @property
    def state(self) -> int:
        """1 ordered answer, 2 stopped, 3 refused, 4 done."""
        return self._state


class Qemu102Host(MergedHost):
    """Merged KVM under QEMU 10.2; repairs as `Qemu102UserSpace`. guest_memfd needs Linux 6.8;
    the default kernel is the one of its time, 6.18, which hides "stale-ret" (K3-g)."""

    name: ClassVar[str] = "qemu-10.2"
    summary: ClassVar[str] = "merged ABI under QEMU 10.2: converts guest_memfd, migration blocked"
    switches: ClassVar[tuple[str, ...]] = (STALE_RET, SIZE_WRAP, SECTION, STOPS_VM)
    default_kernel: ClassVar[str] = "6.18"
    serves_migration_control = False

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """QEMU with all of guest_memfd private."""
        self.qemu = Qemu102UserSpace(frames, self.repaired)
        return self.qemu, self.qemu.injection

    def private_map(self) -> bitarray:
        """KVM's memory attributes for RAM; valid until the next reset."""
        return self.qemu.attributes

    @property
    def migration_ready(self) -> bool:
        """Never: the blocker of SEV init stays (D26)."""
        return False
