# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that do something other than give a wrong answer."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost


class Hangs(MapGpaRangeHost):
    """Never returns from a range of exactly three pages."""

    def hypercall(self, call):
        while call.a1 == 3:
            pass
        return super().hypercall(call)


class Raises(MapGpaRangeHost):
    """Raises for 0 pages."""

    def hypercall(self, call):
        if not call.a1:
            raise KeyError(call.a0)
        return super().hypercall(call)


class Ends(MapGpaRangeHost):
    """Reads address 0 in C for a range of two pages, computes in C for ever for three, exits for
    five."""

    def hypercall(self, call):
        if call.nr == KVM_HC_MAP_GPA_RANGE and call.a1 == 2:
            ctypes.string_at(0)
        if call.a1 == 3:
            max(itertools.repeat(0))
        if call.a1 == 5:
            os._exit(3)
        return super().hypercall(call)


class EndsOnce(MapGpaRangeHost):
    """Ends its process at the tenth call of two pages, unless a file says that it did."""

    done = 0

    def hypercall(self, call):
        type(self).done += call.a1 == 2
        if self.done == 10:
            with contextlib.suppress(FileExistsError):
                os.close(os.open("ended", os.O_CREAT | os.O_EXCL))
                os.abort()
        return super().hypercall(call)


class NowAndThen(MapGpaRangeHost):
    """Refuses every 40th call of the process that would have succeeded."""

    done = 0

    def hypercall(self, call):
        answer = super().hypercall(call)
        type(self).done += answer == 0
        return -12 & U64_MASK if answer == 0 and self.done % 40 == 0 else answer


class KeepsReady(MapGpaRangeHost):
    """READY survives a reset of the VM."""

    was_ready = False

    def restore(self, frames):
        super().restore(frames)

    def reset(self, frames):
        self.was_ready = bool(frames) and getattr(self, "kvm", None) is not None and self.ready
        super().reset(frames)

    @property
    def ready(self):
        return self.was_ready or super().migration_ready

    @property
    def migration_ready(self):
        return self.ready


class ReadyPerVcpu(MapGpaRangeHost):
    """RDMSR of MIGRATION_CONTROL gives what the same vCPU wrote."""

    def reset(self, frames):
        super().reset(frames)
        self.written = {}

    def restore(self, frames):
        super().restore(frames)
        self.written = {}

    def rdmsr(self, index, vcpu):
        value = super().rdmsr(index, vcpu)
        return self.written.get(vcpu.index, 0) if index == MSR_KVM_MIGRATION_CONTROL else value

    def wrmsr(self, index, value, vcpu):
        super().wrmsr(index, value, vcpu)
        if index == MSR_KVM_MIGRATION_CONTROL:
            self.written[vcpu.index] = value
