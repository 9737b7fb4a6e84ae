# SPDX-License-Identifier: GPL-2.0-or-later
"""The exit handlers of today's VMMs, as released and repaired: the cells of table V2."""

from __future__ import annotations

import pytest

from guestemu.abi.errno import EINVAL, EIO
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED, MAP_GPA_RANGE_PAGE_SZ_2M
from guestemu.host.kvm.guest_memory import MemoryFaultExit, VmmCall
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.base import VmStopped
from guestemu.host.userspace.converting import ConvertingUserSpace, VmmHost
from guestemu.program.text import parse_text
from guestemu.runner.testbed import build_testbed

FRAMES = 1024
PAGE = 0x1000
U64 = (1 << 64) - 1
VMMS = ("qemu-11", "cloud-hypervisor", "openvmm", "libkrun", "dragonball")
PRIVATE = MAP_GPA_RANGE_ENCRYPTED


def make(name: str, *switches: str) -> VmmHost:
    host = load_host(name, switches)
    assert isinstance(host, VmmHost)
    host.reset(FRAMES)
    return host


def call(host: VmmHost, gpa: int, pages: int, attributes: int) -> int:
    return host.hypercall(StandInVcpu().hypercall(12, gpa, pages, attributes))


def handler(host: VmmHost) -> ConvertingUserSpace:
    return host.user


def shared(host: VmmHost) -> int:
    return host.private_map().count(0)


@pytest.mark.parametrize("name", VMMS)
def test_a_page_goes_to_shared_and_back(name: str) -> None:
    host = make(name)
    assert call(host, 3 * PAGE, 2, 0) == 0
    assert shared(host) == 2
    assert call(host, 3 * PAGE, 2, PRIVATE) == 0
    assert shared(host) == 0


def test_libkrun_takes_a_size_hint_for_private() -> None:
    posted, repaired = make("libkrun"), make("libkrun", "attributes-word")
    for host in (posted, repaired):
        assert call(host, 0, 512, MAP_GPA_RANGE_PAGE_SZ_2M) == 0
    assert (shared(posted), shared(repaired)) == (0, 512)


@pytest.mark.parametrize("name", ["qemu-11", "cloud-hypervisor", "libkrun", "dragonball"])
def test_the_product_of_pages_wraps(name: str) -> None:
    host = make(name)
    assert call(host, 0, 1 << 52 | 1, 0) == 0
    assert shared(host) == 1, "one page is converted and the guest is told all succeeded (V7)"
    assert call(make(name, "size-wrap", "stops-vm"), 0, 1 << 52 | 1, 0) == EINVAL


@pytest.mark.parametrize("name", ["qemu-11", "cloud-hypervisor", "libkrun", "dragonball"])
def test_a_size_of_zero_stops_the_vm(name: str) -> None:
    with pytest.raises(VmStopped):
        call(make(name), 0, 1 << 52, 0)
    assert call(make(name, "stops-vm"), 0, 1 << 52, 0) == EINVAL


def test_openvmm_refuses_with_one_what_it_does_not_know() -> None:
    for gpa, pages, attributes in (
        (0, 1, 0x20),
        (0, 1, 0x4),
        (0, 1 << 52, 0),
        ((FRAMES - 1) * PAGE, 2, 0),
        (FRAMES * PAGE, 1, 0),
    ):
        host = make("openvmm")
        assert call(host, gpa, pages, attributes) == 1
        assert (shared(host), host.guest_memory.calls) == (0, [])
        assert call(make("openvmm", "answer-one"), gpa, pages, attributes) == EINVAL


@pytest.mark.parametrize("name", ["openvmm", "libkrun"])
def test_a_late_failure_leaves_the_attributes_changed(name: str) -> None:
    answers = []
    for switches in ((), ("attributes-first",)):
        host = make(name, *switches)
        host.guest_memory.order_failure(1, EIO)
        try:
            answers.append(call(host, 0, 4, 0))
        except VmStopped:
            answers.append(-1)
        assert shared(host) == (0 if switches else 4)
    assert answers == ([1, 1] if name == "openvmm" else [-1, -1])


def test_cloud_hypervisor_logs_a_failed_punch_and_reports_success() -> None:
    host = make("cloud-hypervisor")
    host.guest_memory.order_failure(1, EIO)
    assert call(host, 0, 1, 0) == 0
    assert host.guest_memory.private_pages[0]
    repaired = make("cloud-hypervisor", "punch-logged", "stops-vm")
    repaired.guest_memory.order_failure(1, EIO)
    assert call(repaired, 0, 1, 0) == EIO
    assert shared(repaired) == 0


def test_cloud_hypervisor_converts_at_a_fault_without_a_punch() -> None:
    fault = MemoryFaultExit(0, PAGE, False)
    for switches, keeps in ((), True), (("fault-no-punch",), False):
        host = make("cloud-hypervisor", *switches)
        assert handler(host).memory_fault(fault)
        assert shared(host) == 1
        assert bool(host.guest_memory.private_pages[0]) is keeps


@pytest.mark.parametrize("name", ["openvmm", "dragonball"])
def test_a_memory_fault_ends_the_vm(name: str) -> None:
    with pytest.raises(VmStopped):
        handler(make(name)).memory_fault(MemoryFaultExit(0, PAGE, False))


@pytest.mark.parametrize("name", ["qemu-11", "libkrun"])
def test_a_memory_fault_converts(name: str) -> None:
    host = make(name)
    assert handler(host).memory_fault(MemoryFaultExit(0, PAGE, False))
    assert (shared(host), bool(host.guest_memory.private_pages[0])) == (1, False)


def test_dragonball_frees_nothing() -> None:
    host = make("dragonball")
    call(host, 0, 1, 0)
    assert host.guest_memory.private_pages[0]
    repaired = make("dragonball", "no-discard")
    call(repaired, 0, 1, 0)
    assert not repaired.guest_memory.private_pages[0]


def test_qemu_tells_its_listeners_and_populates() -> None:
    host = make("qemu-11")
    call(host, 0, 2, 0)
    assert host.guest_memory.device_map.count() == 2
    call(host, 0, 1, PRIVATE)
    assert host.guest_memory.device_map.count() == 1
    assert [one.name for one in host.guest_memory.calls][-1] == "KVM_PRE_FAULT_MEMORY"


def test_qemu_stops_over_the_end_of_its_region_with_the_attributes_changed() -> None:
    host = make("qemu-11")
    with pytest.raises(VmStopped):
        call(host, (FRAMES - 1) * PAGE, 2, 0)
    assert shared(host) == 1
    repaired = make("qemu-11", "attributes-first", "stops-vm")
    assert call(repaired, (FRAMES - 1) * PAGE, 2, 0) == EINVAL
    assert shared(repaired) == 0


def test_qemu_with_a_listener_that_fails() -> None:
    for switches, left in ((), 1), (("listener-fails",), 0):
        host = make("qemu-11", *switches)
        host.guest_memory.order_failure(1, EIO)
        with pytest.raises(VmStopped):
            call(host, 0, 1, 0)
        assert shared(host) == left


def test_no_memory_at_the_start_of_a_range() -> None:
    host = make("qemu-11")
    assert call(host, FRAMES * PAGE, 1, 0) == 0, "to shared: nothing is done (V3)"
    with pytest.raises(VmStopped):
        call(host, FRAMES * PAGE, 1, PRIVATE)
    for name in ("cloud-hypervisor", "dragonball"):
        assert call(make(name), FRAMES * PAGE, 1, 0) == 0
    with pytest.raises(VmStopped):
        call(make("libkrun"), FRAMES * PAGE, 1, 0)


@pytest.mark.parametrize("name", VMMS)
def test_the_answer_is_stale_below_kernels_that_clear_it(name: str) -> None:
    host = make(f"{name}:6.1")
    host.inject_answer(77, 1)
    call(host, 0, 1, 0)
    assert shared(host) == 0
    assert call(host, 0, 1, 0) == (0 if name == "openvmm" else 77)


def test_calls_are_recorded_with_arguments_and_results() -> None:
    host = make("cloud-hypervisor")
    call(host, 0, 1, 0)
    assert host.guest_memory.calls == [
        VmmCall("KVM_SET_MEMORY_ATTRIBUTES", (0, PAGE, 0, 0), 0),
        VmmCall("fallocate", (0, 3, 0, PAGE), 0),
    ]


@pytest.mark.parametrize(
    ("name", "switches", "found"),
    [
        ("qemu-11", "", set()),
        ("openvmm", "", set()),
        ("libkrun", "", set()),
        ("cloud-hypervisor", "", {"guest-memory"}),
        ("cloud-hypervisor", "switches no-discard", set()),
        ("dragonball", "", {"guest-memory"}),
        ("dragonball", "switches no-discard", set()),
    ],
)
def test_what_a_round_trip_of_a_guest_leaves_behind(
    name: str, switches: str, found: set[str]
) -> None:
    text = f"""guestemu-program 1
guest snippet:6.12
host {name}
{switches}
---
set_memory_decrypted D[3] pages=2
set_memory_encrypted D[3] pages=2
"""
    program = parse_text(text.replace("\n\n", "\n"), name)
    bed = build_testbed(program.header)
    assert {one.check for one in bed.run(program.ops).violations} == found
    bed.close()
