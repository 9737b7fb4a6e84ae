# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from guestemu.abi.addresses import Gpa
from guestemu.host.base import GuestFault
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.base import VmStopped
from guestemu.host.userspace.qemu_v4_stream import gfn_of_block_page, save_regions

MSR = 0x4B564D08
EINVAL = -22 & (1 << 64) - 1


def make(spec, *switches):
    host = load_host(spec, switches)
    host.reset(64)
    return host


def call(host, gpa, pages, attributes):
    return host.hypercall(StandInVcpu().hypercall(12, gpa, pages, attributes))


def shared(host):
    return [gfn for gfn, bit in enumerate(host.private_map()) if not bit]


def test_v4_takes_the_whole_attributes_word_as_a_boolean():
    posted, repaired = make("qemu-v4"), make("qemu-v4", "attributes-word")
    for host in (posted, repaired):
        call(host, 0x8000, 1, 0)
        call(host, 0, 8, 1)
    assert shared(posted) == [8]
    assert shared(repaired) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_v4_migration_blocker_is_removed_for_good():
    host = make("qemu-v4")
    host.wrmsr(MSR, 3, StandInVcpu())
    assert not host.migration_ready, "only exactly READY removes the blocker"
    host.wrmsr(MSR, 1, StandInVcpu())
    host.wrmsr(MSR, 0, StandInVcpu())
    assert host.migration_ready
    assert host.rdmsr(MSR, StandInVcpu()) == 0
    repaired = make("qemu-v4", "msr-zero")
    repaired.wrmsr(MSR, 1, StandInVcpu())
    repaired.wrmsr(MSR, 0, StandInVcpu())
    assert not repaired.migration_ready
    with pytest.raises(GuestFault):
        repaired.wrmsr(MSR, 2, StandInVcpu())


def test_v4_leaves_ret_to_chance():
    for kernel, result in (("6.1", 77), ("6.18", 0)):
        host = make(f"qemu-v4:{kernel}")
        host.inject_answer(77, 1)
        call(host, 0, 1, 0)
        assert shared(host) == []
        assert call(host, 0, 1, 0) == result
    host = make("qemu-v4", "stale-ret")
    host.inject_answer(77, 1)
    assert [call(host, 0, 1, 0), call(host, 0, 1, 0)] == [77, 0]


def test_10_2_converts_by_bit_4():
    host = make("qemu-10.2")
    assert call(host, 0x1000, 2, 0xF) == 0
    assert call(host, 0x2000, 1, 0x10) == 0
    assert shared(host) == [1]


@pytest.mark.parametrize(
    ("gpa", "pages", "attributes", "stops"),
    [
        (64 << 12, 1, 0, False),
        (64 << 12, 1, 0x10, True),
        (0, 1 << 52, 0, True),
        (0x1000, (1 << 52) - 1, 0, False),
        (0x2000, (1 << 52) - 1, 0, True),
    ],
)
def test_10_2_error_stops_the_vm(gpa, pages, attributes, stops):
    host = make("qemu-10.2")
    if not stops:
        assert call(host, gpa, pages, attributes) == 0
        return
    with pytest.raises(VmStopped, match=r"QEMU stopped the VM.*error -22"):
        call(host, gpa, pages, attributes)
    assert call(make("qemu-10.2", "stops-vm"), gpa, pages, attributes) == EINVAL


def test_10_2_size_wraps_to_less_than_asked():
    host = make("qemu-10.2")
    assert call(host, 0, 1 << 52 | 2, 0) == 0
    assert shared(host) == [0, 1]
    with pytest.raises(VmStopped):
        call(make("qemu-10.2", "size-wrap"), 0, 1 << 52 | 2, 0)


def test_10_2_section_repaired_clips_instead_of_failing():
    host = make("qemu-10.2", "section")
    assert call(host, 0x2000, (1 << 52) - 1, 0) == 0
    assert shared(host) == list(range(2, 64))


def test_10_2_stale_ret_on_an_old_kernel():
    for switches, result in (((), 5), (("stale-ret",), 0)):
        host = make("qemu-10.2:6.12", *switches)
        host.inject_answer(5, 1)
        call(host, 0, 1, 0)
        assert call(host, 0, 1, 0) == result


def test_10_2_guest_cannot_enable_migration():
    host = make("qemu-10.2")
    with pytest.raises(GuestFault):
        host.wrmsr(MSR, 1, StandInVcpu())
    with pytest.raises(GuestFault):
        host.rdmsr(MSR, StandInVcpu())
    assert not host.migration_ready


def test_v4_list_on_the_wire():
    assert save_regions([(1, 0x203)]).hex() == "00000001000000010000020300000002"
    assert save_regions([]).hex() == "00000002"


def test_v4_wire_cuts_gfns_to_32_bits():
    assert save_regions([(1 << 32 | 5, 1 << 32 | 6)]) == save_regions([(5, 6)])


def test_v4_gfn_above_the_pci_hole_is_too_low():
    hole_start, hole_size = 0x80000, 0x80000
    page = hole_start + 5
    assert gfn_of_block_page(page, Gpa(0)) == page
    true_gfn = page + hole_size
    assert true_gfn - gfn_of_block_page(page, Gpa(0)) == hole_size
    assert gfn_of_block_page(2, Gpa(0xFFC0_0000)) == 0xFFC02
