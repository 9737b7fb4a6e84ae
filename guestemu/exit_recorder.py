# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes every answered exit of an operation on its way from the vCPU to the host and back."""

from __future__ import annotations

from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.checks.base import ExitRecord
from guestemu.guest.base import Guest
from guestemu.host.base import GuestFault, Host, Hypercall, MapGpaRange, VcpuAccess


class ExitRecorder:
    """Stands between vCPU and host: passes every exit on and notes the answer."""

    def __init__(self, host: Host, guest: Guest) -> None:
        self.records: list[ExitRecord] = []
        self._answer = host.hypercall
        self._host = host
        self._ram = guest.machine.ram

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        args = (call.a0, call.a1, call.a2, call.a3)
        writes = self._ram.table_write_count
        try:
            value = self._answer(call)
        except GuestFault:
            self.records.append(
                ExitRecord("hypercall", call.nr, args, None, writes, call.cpl, call.is_64bit)
            )
            raise
        self.records.append(
            ExitRecord("hypercall", call.nr, args, value, writes, call.cpl, call.is_64bit)
        )
        return value

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`. Recorded as the hypercall that user space sees."""
        args = (call.gpa, call.pages, call.attributes, 0)
        writes = self._ram.table_write_count
        value: int | None = None
        try:
            value = self._host.map_gpa_range(call)
        finally:
            self.records.append(
                ExitRecord(
                    "hypercall", KVM_HC_MAP_GPA_RANGE, args, value, writes, origin=call.origin
                )
            )
        return value

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        value: int | None = None
        try:
            value = self._host.rdmsr(index, vcpu)
        finally:
            self.records.append(ExitRecord("rdmsr", index, (), value, self._ram.table_write_count))
        return value

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        taken: int | None = None
        try:
            self._host.wrmsr(index, value, vcpu)
            taken = value
        finally:
            self.records.append(
                ExitRecord("wrmsr", index, (value,), taken, self._ram.table_write_count)
            )
