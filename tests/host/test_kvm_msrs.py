# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import GuestFault
from guestemu.host.kvm.kernels import find_kernel
from guestemu.host.kvm.msr_access import MsrAccess
from guestemu.host.kvm.msr_filter import MsrFilter, MsrFilterRange, deny_migration_control
from guestemu.host.kvm.run import KvmRun
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.reference import ReferenceUserSpace

READ, WRITE = 1, 2
CONTROL = MSR_KVM_MIGRATION_CONTROL


def make(**settings):
    vm = VmSettings(find_kernel("6.1"), memory=1 << 21, **settings)
    return vm, MsrAccess(vm, KvmRun(), ReferenceUserSpace(512))


def test_first_range_that_rules_the_access_decides():
    msr_filter = MsrFilter(
        True,
        (
            MsrFilterRange(0x100, 8, READ, 0b0000_0010),
            MsrFilterRange(0x104, 8, READ | WRITE, 0),
        ),
    )
    assert [msr_filter.allows(0x100 + i, READ) for i in range(3)] == [False, True, False]
    assert msr_filter.allows(0x100, WRITE)
    assert not msr_filter.allows(0x104, WRITE)
    assert msr_filter.allows(0x10C, WRITE)
    assert msr_filter.allows(0x800, READ)


@pytest.mark.parametrize(
    ("msr_filter", "result"),
    [
        (MsrFilter(), 0),
        (MsrFilter(False), -22),
        (MsrFilter(False, (MsrFilterRange(0, 0, READ, 0),)), -22),
        (MsrFilter(True, (MsrFilterRange(0, 1, 4, 0),)), -22),
        (MsrFilter(True, (MsrFilterRange(0, 0x600 * 8, READ, 0),)), 0),
        (MsrFilter(True, (MsrFilterRange(0, 0x600 * 8 + 1, READ, 0),)), -22),
        (MsrFilter(True, (MsrFilterRange(0, 1, READ, 0),) * 17), -22),
    ],
)
def test_result_of_the_filter_ioctl(msr_filter, result):
    vm, _ = make()
    assert vm.set_msr_filter(msr_filter) == result


def test_refused_filter_leaves_the_old_one():
    vm, _ = make()
    vm.set_msr_filter(deny_migration_control())
    assert vm.set_msr_filter(MsrFilter(False)) == -22
    assert vm.msr_filter == deny_migration_control()


def test_x2apic_msrs_are_never_filtered():
    deny_all = MsrFilter(False, (MsrFilterRange(0, 1, READ, 0),))
    assert deny_all.allows(0x8FF, WRITE)
    assert not deny_all.allows(0x900, WRITE)


@pytest.mark.parametrize(
    ("index", "value", "accepted"),
    [
        (0x4B564D04, 0x200001, False),  # PV_EOI enabled beyond RAM
        (0x4B564D04, 0x1FFFFD, True),
        (0x4B564D04, 0x1FFFFE, False),
        (0x4B564D03, 0x41, True),
        (0x4B564D03, 0x21, False),
        (0x4B564D06, 0xFF, True),
        (0x4B564D06, 0x100, False),
        (0x4B564D02, 0x101, True),
        (0x4B564D02, 0x111, False),
    ],
)
def test_neighbours_with_an_in_kernel_irqchip(index, value, accepted):
    _, access = make(in_kernel_irqchip=True)
    assert access.host_set(index, value) == int(accepted)
    assert access.host_get(index) == (1, value if accepted else 0)


def test_privilege_comes_before_the_filter_exit():
    vm, access = make()
    vm.enable_user_space_msr(7)
    vm.set_msr_filter(deny_migration_control())
    with pytest.raises(GuestFault) as caught:
        access.read(CONTROL, StandInVcpu(cpl=3))
    assert (caught.value.vector, caught.value.error_code) == (13, 0)
    assert access.read(CONTROL, StandInVcpu()) == 0


def test_latch_is_vm_wide_and_refuses_reserved_bits():
    host = load_host("map-gpa-range")
    host.reset(16)
    first, second = StandInVcpu(), StandInVcpu()
    host.wrmsr(CONTROL, 1, first)
    assert host.rdmsr(CONTROL, second) == 1
    for value in (2, 3, 1 << 63):
        with pytest.raises(GuestFault):
            host.wrmsr(CONTROL, value, first)
        assert host.migration_ready
    host.wrmsr(CONTROL, 0, second)
    assert not host.migration_ready


def test_ordered_msr_error_ends():
    host = load_host("map-gpa-range")
    host.reset(16)
    host.inject_msr_error(1)
    with pytest.raises(GuestFault):
        host.rdmsr(CONTROL, StandInVcpu())
    assert host.rdmsr(CONTROL, StandInVcpu()) == 0
