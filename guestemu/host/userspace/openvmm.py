# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenVMM's exit handler of August 2026 (1488a37b7cfe): V2, V6, V10. SNP guests.

Its memory is what it starts with: the source has neither virtio-mem nor another hot-plug.
"""

from __future__ import annotations

from typing import ClassVar, Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.guest_memory import MemoryFaultExit
from guestemu.host.kvm.run import KvmRun
from guestemu.host.userspace.converting import (
    ANSWER_ONE,
    ATTRIBUTES_FIRST,
    DONE,
    REFUSED,
    ConvertingUserSpace,
    VmmHost,
)

_KNOWN_BITS: Final = 0xF3
_REFUSAL: Final = 1


class OpenVmmUserSpace(ConvertingUserSpace):
    """Tests everything and writes `ret` itself. It refuses with 1 ("answer-one"), which KVM since
    7.2 does not take from a page-state change or MapGPA (GM20); a refusal after the attributes were
    set leaves them changed ("attributes-first")."""

    __slots__ = ()

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Answers 0 or 1; another number is answered 1 and ends the VM."""
        request = run.hypercall
        if self.injection.answers:
            super().hypercall_exit(run, vcpu)
            return
        refusal = EINVAL if ANSWER_ONE in self._repaired else _REFUSAL
        if request.nr != KVM_HC_MAP_GPA_RANGE:
            request.ret = refusal
            raise self._stop(f"hypercall {request.nr}")
        gpa, pages, attributes = request.args[:3]
        result = self.convert(gpa, pages, attributes)
        self._state = REFUSED if result else DONE
        request.ret = refusal if result else 0

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Refuses unknown bits, a range that is empty, unaligned, wraps, or is not wholly covered
        by slots with guest_memfd."""
        kind = attributes & 0xF0
        if attributes & ~_KNOWN_BITS or kind not in {0, MAP_GPA_RANGE_ENCRYPTED}:
            return -EINVAL
        size = pages << PAGE_SHIFT
        if not size or gpa & PAGE_MASK or gpa + size > U64_MASK:
            return -EINVAL
        covered = sum(
            length for _, place, _, length in self.memory.parts(gpa, size) if place.has_guest_memfd
        )
        if covered != size:
            return -EINVAL
        return self._convert_whole(gpa, size, bool(kind))

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """Ends the VM."""
        raise self._stop(f"memory fault at {fault.gpa:#x}")


class OpenVmmHost(VmmHost):
    """KVM under OpenVMM."""

    name: ClassVar[str] = "openvmm"
    summary: ClassVar[str] = "merged ABI under OpenVMM of 2026: SNP guests"
    handler: ClassVar[type[ConvertingUserSpace]] = OpenVmmUserSpace
    switches: ClassVar[tuple[str, ...]] = (ANSWER_ONE, ATTRIBUTES_FIRST)
