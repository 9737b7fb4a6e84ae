# SPDX-License-Identifier: GPL-2.0-or-later
"""The merged hypercall path beyond what the recordings hold: boundaries, completion, kernels."""

import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.kernels import KERNELS, find_kernel
from guestemu.host.kvm.merged import MergedKvm
from guestemu.host.kvm.pv_msrs import MSR_KVM_ASYNC_PF_EN, MsrResult, PvMsrs
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.base import UserSpace

U64 = (1 << 64) - 1
EINVAL, ENOSYS, EPERM = -22 & U64, -1000 & U64, -1 & U64


class Recorder(UserSpace):
    def __init__(self, act=None):
        self.exits = []
        self.interruptions = []
        self.act = act

    def hypercall_exit(self, run, vcpu):
        request = run.hypercall
        self.exits.append((request.nr, *request.args[:3], request.longmode, request.ret))
        if self.act:
            self.act(run, vcpu)

    def interrupted(self, run, vcpu, rip, rax):
        self.interruptions.append((rip, rax))
        super().interrupted(run, vcpu, rip, rax)

    def rdmsr_exit(self, run, vcpu):
        raise AssertionError

    wrmsr_exit = rdmsr_exit


def make(kernel="6.1", act=None, mask=0x1000):
    user = Recorder(act)
    settings = VmSettings(find_kernel(kernel), memory=1 << 21)
    assert settings.enable_exit_hypercall(mask) == 0
    return MergedKvm(settings, user), user


@pytest.mark.parametrize(
    ("gpa", "pages", "result"),
    [
        (0, 0, EINVAL),
        (1, 1, EINVAL),
        (0, 1, "exit"),
        (0xFFFF_FFFF_FFFF_F000, 1, "exit"),
        (0x1000, U64, EINVAL),
        (0, U64, "exit"),
        (0, 1 << 63, "exit"),
        (0x1000, U64 - 1, "exit"),
        (0x100000, 1 << 52, "exit"),
        (0x100000, U64 - 0xFF, EINVAL),
        (0x100000, U64 - 0x100, "exit"),
    ],
)
def test_boundary_table_of_the_merged_hypercall(gpa, pages, result):
    kvm, user = make()
    rax = kvm.hypercall(StandInVcpu().hypercall(12, gpa, pages, 0))
    if result == "exit":
        assert (user.exits, rax) == ([(12, gpa, pages, 0, 1, 0)], 0)
    else:
        assert (user.exits, rax) == ([], result)


@pytest.mark.parametrize("attributes", [0xF, 0x3F, 1 << 31, 1 << 63, U64])
def test_attributes_pass_unchecked(attributes):
    kvm, user = make()
    kvm.hypercall(StandInVcpu().hypercall(12, 0x1000, 1, attributes))
    assert user.exits[0][3] == attributes


def test_order_of_checks_is_cpl_number_capability_arguments():
    off, user_off = make(mask=0)
    on, user_on = make()
    assert on.hypercall(StandInVcpu(cpl=3).hypercall(12, 1, 0)) == EPERM
    assert off.hypercall(StandInVcpu(cpl=3).hypercall(100)) == EPERM
    assert off.hypercall(StandInVcpu().hypercall(12, 1, 0)) == ENOSYS
    assert on.hypercall(StandInVcpu().hypercall(12, 1, 0)) == EINVAL
    assert user_off.exits == user_on.exits == []


def test_send_ipi_refuses_a_destination_in_the_icr():
    kvm, _ = make()
    for icr, result in ((0x800, EINVAL), (0x40000, EINVAL), (0x30, -95 & U64)):
        assert kvm.hypercall(StandInVcpu().hypercall(10, 1, 0, 0, icr)) == result


@pytest.mark.parametrize("mask", [1, 1 << 11, 0x1800, 1 << 13, 1 << 44 | 0x1000, U64])
def test_capability_takes_bit_12_only_and_stays_as_it_was(mask):
    settings = VmSettings(find_kernel("6.1"), memory=0)
    assert settings.enable_exit_hypercall(mask) == -22
    assert settings.hypercall_exits == 0
    assert settings.enable_exit_hypercall(0x1000) == 0
    assert settings.enable_exit_hypercall(mask) == -22
    assert settings.hypercall_exits == 0x1000


def test_ret_is_passed_unfiltered_in_64_bit_code_and_cut_outside_it():
    def answer(run, vcpu):
        run.hypercall.ret = 0x1234_5678_9ABC_DEF0

    kvm, _ = make(act=answer)
    assert kvm.hypercall(StandInVcpu().hypercall(12, 0, 1)) == 0x1234_5678_9ABC_DEF0
    narrow = StandInVcpu(is_64bit=False)
    assert kvm.hypercall(narrow.hypercall(12, 0, 1)) == 0x9ABC_DEF0


def test_mode_is_evaluated_again_at_completion():
    def leave_64bit(run, vcpu):
        vcpu.is_64bit = False
        run.hypercall.ret = U64

    kvm, user = make(act=leave_64bit)
    assert kvm.hypercall(StandInVcpu().hypercall(12, 0, 1)) == 0xFFFF_FFFF
    assert user.exits[0][4] == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_stale_ret_is_returned_where_the_kernel_leaves_it(kernel):
    answers = iter([7, None])

    def answer_once(run, vcpu):
        value = next(answers)
        if value is not None:
            run.hypercall.ret = value

    kvm, user = make(kernel, answer_once)
    call = StandInVcpu().hypercall(12, 0, 1)
    results = [kvm.hypercall(call), kvm.hypercall(call)]
    stale = 0 if KERNELS[kernel].zeroes_ret else 7
    assert results == [7, stale]
    assert user.exits[1][5] == stale


@pytest.mark.parametrize(
    ("kernel", "exits"), [("5.15", 1), ("6.1", 1), ("6.12", 0), ("6.18", 1), ("7.2", 1)]
)
def test_only_6_12_loses_the_exit_of_a_narrow_call_with_junk_above(kernel, exits):
    kvm, user = make(kernel)
    vcpu = StandInVcpu(is_64bit=False)
    assert kvm.hypercall(vcpu.hypercall(0xDEAD_0000_000C, 0xBEEF_0000_1000, 1 << 40 | 1)) == 0
    assert len(user.exits) == exits
    assert all(entry[1:3] == (0x1000, 1) for entry in user.exits)
    # bad arguments are refused before the number is compared again
    assert kvm.hypercall(vcpu.hypercall(0xDEAD_0000_000C, 1, 1)) == 0xFFFF_FFEA


def test_immediate_exit_completes_and_interrupts():
    def stop(run, vcpu):
        run.hypercall.ret = 5
        run.immediate_exit = True

    kvm, user = make(act=stop)
    vcpu = StandInVcpu()
    vcpu.registers["rip"] = 0x8000
    assert kvm.hypercall(vcpu.hypercall(12, 0, 1)) == 5
    assert user.interruptions == [(0x8003, 5)]
    assert not kvm.run.immediate_exit


def test_reference_host_records_attribute_bit_4_clipped_to_ram():
    host = load_host("map-gpa-range")
    host.reset(64)
    vcpu = StandInVcpu()
    assert host.hypercall(vcpu.hypercall(12, 60 << 12, U64 >> 13, 0x2)) == 0
    assert not host.private_map()[60:].any()
    assert host.private_map().count(0) == 4
    host.hypercall(vcpu.hypercall(12, 61 << 12, 1, MAP_GPA_RANGE_ENCRYPTED | 1))
    assert host.private_map().count(0) == 3
    states = {host.state}
    host.hypercall(vcpu.hypercall(12, 1 << 40, 1, 0))
    states.add(host.state)
    assert len(states) == 2
    assert host.private_map().count(0) == 3


def test_a_kernel_without_a_model_is_refused():
    with pytest.raises(InputError, match=r"'5\.10'.*5\.15, 6\.1, 6\.12, 6\.18, 7\.2"):
        find_kernel("5.10")


@pytest.mark.parametrize(
    ("kernel", "kept"), [("6.12", 1 << 32 | 0xD), ("7.2", 1 << 32 | 0xD), ("7.3", 0)]
)
def test_a_refused_address_of_async_page_faults_is_kept_before_7_3(kernel, kept):
    """kvm_pv_enable_async_pf() stored the value before it looked for the address."""
    settings = VmSettings(KERNELS[kernel], memory=1 << 30, in_kernel_irqchip=True)
    msrs = PvMsrs(settings)
    assert msrs.write(MSR_KVM_ASYNC_PF_EN, 1 << 32 | 0xD) is MsrResult.INVALID
    assert msrs.read(MSR_KVM_ASYNC_PF_EN) == kept
    assert msrs.write(MSR_KVM_ASYNC_PF_EN, 0x100D) is MsrResult.DONE
    assert msrs.read(MSR_KVM_ASYNC_PF_EN) == 0x100D
