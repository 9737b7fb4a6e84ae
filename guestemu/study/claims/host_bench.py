# SPDX-License-Identifier: GPL-2.0-or-later
"""Status hypercalls on a host model, made by a vCPU without a machine.

What is asked here does not depend on the guest that makes the calls; models: docs/hosts.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK, to_signed
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import GuestFault, Host
from guestemu.host.kvm.historic import HistoricHost
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu

MODEL: Final = "host model"
"""As the guest of a `ClaimResult`: a vCPU without a machine makes the calls."""

FRAMES: Final = 16


class BenchedHost(msgspec.Struct, frozen=True):
    """A host by its name and the defects repaired; `plugin` is the path of its code, if any."""

    name: str
    switches: tuple[str, ...] = ()
    plugin: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return (
            f"{self.name}, {' and '.join(self.switches)} repaired" if self.switches else self.name
        )


class TimedCall(msgspec.Struct, frozen=True):
    """A status hypercall for frames [start, end)."""

    start: int
    end: int
    private: bool

    def __str__(self) -> str:
        return f"[{self.start}, {self.end}) {'private' if self.private else 'shared'}"


class HostBench:
    """One host with `frames` frames; a guest that consented, if it was asked."""

    def __init__(self, choice: BenchedHost, frames: int = FRAMES) -> None:
        self.host = load_host(choice.name, choice.switches, choice.plugin)
        self._vcpu = StandInVcpu()
        self._frames = frames

    def start(self) -> Host:
        """A new VM."""
        self.host.reset(self._frames)
        with contextlib.suppress(GuestFault):  # a host without the MSR does not ask
            self.host.wrmsr(MSR_KVM_MIGRATION_CONTROL, 1, self._vcpu)
        return self.host

    def call(self, gpa: int, pages: int, private: bool) -> int:
        """The answer (signed) to a status hypercall in the host's own ABI."""
        if isinstance(self.host, HistoricHost):
            return self.raw(gpa, pages, int(private), self.host.number)
        return self.raw(gpa, pages, MAP_GPA_RANGE_ENCRYPTED if private else 0)

    def raw(self, gpa: int, pages: int, attributes: int, nr: int = KVM_HC_MAP_GPA_RANGE) -> int:
        """The answer (signed) to a hypercall."""
        call = self._vcpu.hypercall(nr, gpa, pages, attributes)
        return to_signed(self.host.hypercall(call) & U64_MASK, 64)

    def run(self, calls: Sequence[TimedCall]) -> tuple[bitarray, list[int]]:
        """The record after `calls` on a new VM, and the answers."""
        self.start()
        answers = [
            self.call(call.start << PAGE_SHIFT, call.end - call.start, call.private)
            for call in calls
        ]
        return self.host.private_map().copy(), answers
