# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of MSR exits and of the testbed's fault orders."""

from __future__ import annotations

from collections.abc import Iterator

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.msrs import MSR_KVM_CUSTOM_LAST, MSR_KVM_MIGRATION_CONTROL
from guestemu.conformance.hosts.probe import FRAMES, Abi, HostProbe


def migration_control(probe: HostProbe) -> Iterator[str]:
    """The opt-in MSR is there and means what it says, or is not there at all."""
    if not probe.wrmsr(MSR_KVM_MIGRATION_CONTROL, 1):
        if probe.host.migration_ready:
            yield "ready for migration although WRMSR of 1 gave #GP"
        return
    if not probe.host.migration_ready:
        yield "not ready for migration after WRMSR of 1"
    if probe.rdmsr(MSR_KVM_MIGRATION_CONTROL) != 1:
        yield f"RDMSR gives {probe.rdmsr(MSR_KVM_MIGRATION_CONTROL)} after WRMSR of 1"
    probe.wrmsr(MSR_KVM_MIGRATION_CONTROL, 0)
    if probe.host.migration_ready:
        yield "still ready for migration after WRMSR of 0"
    probe.wrmsr(MSR_KVM_MIGRATION_CONTROL, 1)
    probe.host.reset(FRAMES)
    if probe.host.migration_ready:
        yield "a new VM is ready for migration"


def reserved_bits(probe: HostProbe) -> Iterator[str]:
    """Merged ABI: a write with reserved bits is refused and changes nothing (K5-f)."""
    if probe.abi is not Abi.MAP_GPA_RANGE:
        return
    for value in (2, 3, 1 << 32 | 1, U64_MASK):
        if probe.wrmsr(MSR_KVM_MIGRATION_CONTROL, value):
            yield f"WRMSR of {value:#x} was accepted"
        if probe.host.migration_ready:
            yield f"WRMSR of {value:#x} made the VM ready for migration"


def msr_privilege(probe: HostProbe) -> Iterator[str]:
    """Above CPL 0 RDMSR and WRMSR are #GP and change nothing."""
    if probe.wrmsr(MSR_KVM_MIGRATION_CONTROL, 1, cpl=3):
        yield "WRMSR went through at CPL 3"
    if probe.rdmsr(MSR_KVM_MIGRATION_CONTROL, cpl=3) is not None:
        yield "RDMSR went through at CPL 3"
    if probe.host.migration_ready:
        yield "WRMSR at CPL 3 made the VM ready for migration"


def unknown_msrs(probe: HostProbe) -> Iterator[str]:
    """MSRs that KVM does not implement are #GP."""
    for index in (MSR_KVM_MIGRATION_CONTROL + 1, MSR_KVM_CUSTOM_LAST):
        if probe.rdmsr(index) is not None:
            yield f"RDMSR of {index:#x} went through"
        if probe.wrmsr(index, 0):
            yield f"WRMSR of {index:#x} went through"


def fault_orders(probe: HostProbe) -> Iterator[str]:
    """Ordered answers reach the guest and record nothing; ordered MSR errors are #GP; both end."""
    try:
        probe.host.inject_answer(U64_MASK - 21, 2)
        probe.host.inject_msr_error(1)
    except NotImplementedError:
        return
    for _ in range(2):
        result = probe.convert(3, 1, private=False)
        if result != U64_MASK - 21:
            yield f"ordered answer: guest got {result:#x}"
    if probe.shared():
        yield "an ordered answer was recorded as a conversion"
    result = probe.convert(3, 1, private=False)
    if result:
        yield f"the conversion after the ordered answers was answered {result:#x}"
    if probe.shared() != {3}:
        yield "the conversion after the ordered answers was not recorded"
    if probe.wrmsr(MSR_KVM_MIGRATION_CONTROL, 1):
        yield "ordered MSR error: WRMSR went through"
    if probe.host.migration_ready:
        yield "ordered MSR error: the value was taken"
