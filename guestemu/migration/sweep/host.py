# SPDX-License-Identifier: GPL-2.0-or-later
"""The host of a migrated kernel: it grants everything, keeps each frame's status and a log.

The status is KVM_HC_MAP_GPA_RANGE's word (facts K3, K4) and is what decides how a page is sent; it
travels in the stream. The log is for the observer, who holds the source's beginning and the
destination's rest against the log of a guest that stayed where it was.
"""

from __future__ import annotations

from collections.abc import Iterable

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.tdx import MapGpaAnswer
from guestemu.events.exits import HypercallExit
from guestemu.guest.base import BootExit
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.host.kvm.tdx_map_gpa import KVM_7_2, tdx_map_gpa
from guestemu.machine.exits import Hypercall, MapGpaRange, RunFailed, VcpuAccess
from guestemu.machine.sept import SecureEpt
from guestemu.machine.view_bit import ViewBit


class StatusHost(BootRecorder):
    """An `ExitHandler` that answers 0. `shared` has a byte for each of `frames`: 1 = shared.

    `kvm` is what answers a TD's MapGPA; of one that `is_cut` the vCPU's state is taken after the
    first chunk.
    """

    def __init__(self, frames: int, boot_exits: Iterable[BootExit] = ()) -> None:
        super().__init__()
        self.shared = bytearray(frames)
        self.kvm = KVM_7_2
        for told in boot_exits:
            if isinstance(told, HypercallExit):
                self._note(told.nr, *told.args[:3])

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        self._note(call.nr, call.a0, call.a1, call.a2)
        return super().hypercall(call)

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        self._note(KVM_HC_MAP_GPA_RANGE, call.gpa, call.pages, call.attributes)
        return super().map_gpa_range(call)

    def tdx_map_gpa(
        self, gpa: int, size: int, bit: ViewBit, vcpu: VcpuAccess, sept: SecureEpt
    ) -> MapGpaAnswer | RunFailed:
        """See `MapGpaHandler`."""

        def ask(call: MapGpaRange) -> int:
            answer = self.map_gpa_range(call)
            is_private = bool(call.attributes & MAP_GPA_RANGE_ENCRYPTED)
            convert = sept.make_private if is_private else sept.make_shared
            convert(call.gpa >> PAGE_SHIFT, call.pages)
            return answer

        return tdx_map_gpa(self.kvm, gpa, size, bit, ask, vcpu)

    def _note(self, number: int, gpa: int, pages: int, attributes: int) -> None:
        if number == KVM_HC_MAP_GPA_RANGE:
            first = min(gpa >> PAGE_SHIFT, len(self.shared))
            count = min(pages, len(self.shared) - first)
            is_shared = not attributes & MAP_GPA_RANGE_ENCRYPTED
            self.shared[first : first + count] = bytes([is_shared]) * count

    def capture(self) -> bytes:
        """See `StatePart`."""
        return bytes(self.shared)

    def restore(self, data: bytes) -> None:
        """See `StatePart`; the log starts empty."""
        self.shared[:] = data
        self.exits.clear()
