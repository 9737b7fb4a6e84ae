# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that wait for a file, so that a test finds a process exactly where it wants it.

In a process whose environment names a directory (see `held.Hold`), access number N writes the file
`held-PID` there and waits for the file `go`. Everywhere else they behave as their base does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import Hypercall, VcpuAccess
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost

_POLL_S = 0.02


class Gate:
    """Counts the accesses of this process."""

    accesses = 0

    @classmethod
    def pass_through(cls) -> None:
        directory = os.environ.get("GUESTEMU_TEST_HOLD")
        if directory is None:
            return
        cls.accesses += 1
        after = int(os.environ.get("GUESTEMU_TEST_HOLD_AFTER", "0"))
        go = Path(directory) / "go"
        if cls.accesses <= after or go.exists():
            return
        mark = Path(directory) / f"held-{os.getpid()}"
        mark.touch()
        while not go.exists():
            time.sleep(_POLL_S)
        mark.unlink()


class Held(MapGpaRangeHost):
    """The reference host."""

    def hypercall(self, call: Hypercall) -> int:
        Gate.pass_through()
        return super().hypercall(call)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        Gate.pass_through()
        super().wrmsr(index, value, vcpu)


class HeldReservedBits(Held):
    """Drops the reserved bits of MIGRATION_CONTROL instead of refusing them."""

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        if index == MSR_KVM_MIGRATION_CONTROL:
            value &= KVM_MIGRATION_READY
        super().wrmsr(index, value, vcpu)
