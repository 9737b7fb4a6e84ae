# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes what happens during an operation: every answered exit, and what the machine emits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.tdx import MapGpaAnswer
from guestemu.events.base import Event
from guestemu.events.exits import (
    AnsweredExit,
    HypercallExit,
    MapGpaRangeExit,
    RdmsrExit,
    WrmsrExit,
)
from guestemu.guest.base import Guest
from guestemu.host.base import GuestFault, Host, Hypercall, MapGpaRange, VcpuAccess
from guestemu.host.kvm.host import MergedHost
from guestemu.host.kvm.tdx_map_gpa import KVM_7_2, tdx_map_gpa
from guestemu.machine.exits import RunFailed
from guestemu.machine.sept import SecureEpt
from guestemu.machine.view_bit import ViewBit

_CHUNKS_PER_TICK: Final = 512
"""1 GiB: a MapGPA of any size ends."""


def in_order(records: Sequence[AnsweredExit], emitted: Iterable[tuple[int, Event]]) -> list[Event]:
    """Exits and other events, each with the number of exits before it, in the order of time."""
    events: list[Event] = []
    done = 0
    for number, event in emitted:
        events += records[done:number]
        events.append(event)
        done = number
    events += records[done:]
    return events


class ExitRecorder:
    """Stands between vCPU and host: passes every exit on and notes the answer.

    `records` are the answered exits, `emitted` the machine's other events, each with the number of
    exits before it.
    """

    def __init__(self, host: Host, guest: Guest) -> None:
        self.records: list[AnsweredExit] = []
        self.emitted: list[tuple[int, Event]] = []
        self._answer = host.hypercall
        self._host = host
        self._map_gpa_range = host.map_gpa_range
        self._machine = guest.machine
        self._ram = guest.machine.ram
        self.kvm = host.tdx_kvm if isinstance(host, MergedHost) else KVM_7_2
        self._td = guest.td
        self._chunks = 0

    def attach(self) -> None:
        """From now on the guest's exits and events come here."""
        self._machine.hooks.handler = self
        self._machine.log.listener = self.emit

    def emit(self, event: Event) -> None:
        """Notes something other than an exit."""
        self.emitted.append((len(self.records), event))

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        args = (call.a0, call.a1, call.a2, call.a3)
        writes = self._ram.table_write_count
        try:
            value = self._answer(call)
        except GuestFault:
            self.records.append(HypercallExit(call.nr, args, None, writes, call.cpl, call.is_64bit))
            raise
        self.records.append(HypercallExit(call.nr, args, value, writes, call.cpl, call.is_64bit))
        return value

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        args = (call.gpa, call.pages, call.attributes, 0)
        writes = self._ram.table_write_count
        value: int | None = None
        try:
            value = self._map_gpa_range(call)
        finally:
            self.records.append(
                MapGpaRangeExit(KVM_HC_MAP_GPA_RANGE, args, value, writes, origin=call.origin)
            )
        return value

    def tdx_map_gpa(
        self, gpa: int, size: int, bit: ViewBit, vcpu: VcpuAccess, sept: SecureEpt
    ) -> MapGpaAnswer | RunFailed:
        """A TD's MapGPA through KVM (host/kvm/tdx_map_gpa.py); each chunk is an exit.

        What is private at the host is what the host's own record says, whatever it answered.
        """

        def ask(call: MapGpaRange) -> int:
            answer = self.map_gpa_range(call)
            sept.follow(call.gpa >> PAGE_SHIFT, call.pages, self._host.private_map())
            return answer

        self._chunks = 0
        kvm = self.kvm
        if self._td is not None and self._td.lie:
            kvm = msgspec.structs.replace(kvm, lie=self._td.lie)
        return tdx_map_gpa(kvm, gpa, size, bit, ask, vcpu=vcpu, has_event=self._has_event)

    def _has_event(self) -> bool:
        """One was ordered, or the timer has ticked, as it does in a long call."""
        self._chunks += 1
        if self._td is not None and self._td.pending_events:
            self._td.pending_events -= 1
            return True
        return self._chunks % _CHUNKS_PER_TICK == 0

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        value: int | None = None
        try:
            value = self._host.rdmsr(index, vcpu)
        finally:
            self.records.append(RdmsrExit(index, (), value, self._ram.table_write_count))
        return value

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        taken: int | None = None
        try:
            self._host.wrmsr(index, value, vcpu)
            taken = value
        finally:
            self.records.append(WrmsrExit(index, (value,), taken, self._ram.table_write_count))
