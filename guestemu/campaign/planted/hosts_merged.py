# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference host with one behaviour changed, a class for each bug of the merged generation.

Each plants what a review, a CVE or a differing reading of the documentation names (facts H); the
reference host itself is the repaired form.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U32_MASK, U64_MASK
from guestemu.abi.errno import ENOSYS
from guestemu.abi.hypercalls import KVM_EINVAL, KVM_ENOSYS, KVM_HC_MAP_GPA_RANGE
from guestemu.host.base import Hypercall
from guestemu.host.kvm.findings import FindingKind, FindingLog, ResourceFinding
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost

_EINVAL = -KVM_EINVAL & U64_MASK
_MAX_STEPS = 1 << 36
"""Pages that user space may look at one by one for a hypercall: 256 TiB of guest memory."""


def _is_map(call: Hypercall) -> bool:
    number = call.nr if call.is_64bit else call.nr & U32_MASK
    return number == KVM_HC_MAP_GPA_RANGE


class TruncatedAnswerHost(MapGpaRangeHost):
    """The completion of the exit asks the wrong helper whether the caller is 64-bit and gets the CS
    of a guest whose state is encrypted: RAX is cut to 32 bits (K3-i, CVE-2024-55881, M20)."""

    name: ClassVar[str] = "zoo-m20"

    def hypercall(self, call: Hypercall) -> int:
        """As the base, the result of an exit truncated."""
        answer = super().hypercall(call)
        is_exit = _is_map(call) and not call.cpl and not call.a0 & PAGE_MASK and call.a1
        return answer & U32_MASK if is_exit and answer < U64_MASK - 4096 else answer


class AttributeBit0Host(MapGpaRangeHost):
    """User space takes bit 0 of the attributes, as in the patch sets, for "encrypted" (M42)."""

    name: ClassVar[str] = "zoo-m42"

    def hypercall(self, call: Hypercall) -> int:
        """As the base, with bit 0 moved to bit 4."""
        return super().hypercall(msgspec.structs.replace(call, a2=(call.a2 & 1) << 4))


class PlainErrnoHost(MapGpaRangeHost):
    """Answers an unknown hypercall with -ENOSYS (38) instead of -KVM_ENOSYS (1000) (M44)."""

    name: ClassVar[str] = "zoo-m44"

    def hypercall(self, call: Hypercall) -> int:
        """As the base, with the kernel's errno."""
        mask = U64_MASK if call.is_64bit else U32_MASK
        answer = super().hypercall(call)
        return -ENOSYS & mask if answer == -KVM_ENOSYS & mask else answer


class PageLoopHost(MapGpaRangeHost):
    """User space walks the range page by page; 2^64 - 1 pages from GPA 0 on are accepted by KVM
    (K3-e) and never end (M72). The steps are counted, not made."""

    name: ClassVar[str] = "zoo-m72"

    def reset(self, frames: int) -> None:
        """As the base, with an empty log."""
        self._log = FindingLog()
        super().reset(frames)

    def restore(self, frames: int) -> None:
        """As the base, with an empty log."""
        self._log = FindingLog()
        super().restore(frames)

    def hypercall(self, call: Hypercall) -> int:
        """As the base; notes a walk that does not end."""
        answer = super().hypercall(call)
        if _is_map(call) and not answer and not call.cpl and call.a1 > _MAX_STEPS and call.is_64bit:
            message = "a walk page by page over a guest's range does not end"
            self._log.add(FindingKind.HOST_MEMORY, 0, message, "K3-e, M72")
        return answer

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """The walks that would not have ended."""
        return self._log.found


class HalfTruncatedHost(MapGpaRangeHost):
    """Outside 64-bit code only RAX is cut to 32 bits, the arguments are not (M73)."""

    name: ClassVar[str] = "zoo-m73"

    def hypercall(self, call: Hypercall) -> int:
        """As the base, as if the arguments came from 64-bit code."""
        if call.is_64bit or not _is_map(call):
            return super().hypercall(call)
        wide = msgspec.structs.replace(call, nr=call.nr & U32_MASK, is_64bit=True)
        return super().hypercall(wide) & U32_MASK


class LatePrivilegeHost(MapGpaRangeHost):
    """Tests the arguments before the CPL (M74)."""

    name: ClassVar[str] = "zoo-m74"

    def hypercall(self, call: Hypercall) -> int:
        """As the base, bad arguments first."""
        if _is_map(call):
            mask = U64_MASK if call.is_64bit else U32_MASK
            gpa, pages = call.a0 & mask, call.a1 & mask
            if gpa & PAGE_MASK or not pages or (gpa >> PAGE_SHIFT) + pages > U64_MASK:
                return _EINVAL & mask
        return super().hypercall(call)
