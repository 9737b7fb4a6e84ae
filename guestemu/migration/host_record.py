# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a host travels: its record of shared frames and whether the guest allowed migration.

The destination's host is another object, a new VM. It takes the record over as it would have heard
it from the guest, range by range, because that is the one interface that hosts of all generations
have. A host that keeps more than the interface shows (an answer of user space that is still
ordered, say) starts without it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import (
    KVM_HC_MAP_GPA_RANGE,
    KVM_HC_PAGE_ENC_STATUS_2019,
    MAP_GPA_RANGE_DECRYPTED,
    MAP_GPA_RANGE_ENCRYPTED,
)
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import GuestFault, Host, Hypercall, VcpuAccess

_CONTRACT_2019: Final = "page-enc-status-2019"
_MAP_GPA_RANGE: Final = "map-gpa-range"


class HostRecord(msgspec.Struct, frozen=True):
    """`shared` are ranges (first frame, frames) from low to high; `is_ready` is MIGRATION_CONTROL
    bit 0."""

    shared: tuple[tuple[int, int], ...]
    is_ready: bool


def _ranges(bits: bitarray) -> tuple[tuple[int, int], ...]:
    """The runs of ones."""
    found = []
    start = bits.find(1)
    while start >= 0:
        end = bits.find(0, start)
        end = len(bits) if end < 0 else end
        found.append((start, end - start))
        start = bits.find(1, end) if end < len(bits) else -1
    return tuple(found)


def capture_host(host: Host) -> HostRecord:
    """The record of `host`. Changes nothing."""
    return HostRecord(_ranges(~host.private_map()), host.migration_ready)


def restore_host(host: Host, record: HostRecord, vcpu: VcpuAccess) -> None:
    """Makes the record of `host`, fresh from `reset` or `restore`, that of `record`.

    `vcpu` is the one whose exits the host believes it answers. A host without MIGRATION_CONTROL
    does without.
    """
    now = host.private_map()
    shared = bitarray(len(now), endian="little")
    for first, pages in record.shared:
        shared[first : first + pages] = True
    notifier = _Notifier(host, vcpu)
    for first, pages in _ranges(now & shared):
        notifier.notify(first, pages, is_private=False)
    for first, pages in _ranges(~now & ~shared):
        notifier.notify(first, pages, is_private=True)
    if host.migration_ready != record.is_ready:
        try:
            host.wrmsr(
                MSR_KVM_MIGRATION_CONTROL, KVM_MIGRATION_READY if record.is_ready else 0, vcpu
            )
        except GuestFault:
            return


class _Notifier:
    """Says the status of ranges in the words of the host's generation."""

    def __init__(self, host: Host, vcpu: VcpuAccess) -> None:
        self._host = host
        self._vcpu = vcpu
        is_2019 = host.contract == _CONTRACT_2019
        self._number = KVM_HC_PAGE_ENC_STATUS_2019 if is_2019 else KVM_HC_MAP_GPA_RANGE
        has_attributes = host.contract == _MAP_GPA_RANGE
        self._private = MAP_GPA_RANGE_ENCRYPTED if has_attributes else 1

    def notify(self, first: int, pages: int, is_private: bool) -> None:
        status = self._private if is_private else MAP_GPA_RANGE_DECRYPTED
        gpa = first << PAGE_SHIFT
        self._host.hypercall(Hypercall(self._number, gpa, pages, status, 0, 0, True, self._vcpu))
