# SPDX-License-Identifier: GPL-2.0-or-later
import struct

import pytest

from guestemu.host.base import GuestFault
from guestemu.host.kvm import findings
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu


def make(*switches):
    host = load_host("shared-list-v10", switches)
    host.reset(64)
    host.wrmsr(0x4B564D08, 1, StandInVcpu())
    return host


def call(host, gfn, pages, enc):
    return host.hypercall(StandInVcpu().hypercall(12, gfn << 12, pages, enc))


def shared(host):
    return [gfn for gfn, bit in enumerate(host.private_map()) if not bit]


def test_result_of_the_list_function_reaches_the_guest():
    host = make()
    assert call(host, 0, 4, 0) == 1
    assert call(host, 1, 1, 1) == 1
    assert host.regions == [(0, 0), (3, 4)]
    assert call(host, 3, 1, 1) == (1 << 64) - 1
    assert host.count == 1
    repaired = make("result")
    assert call(repaired, 0, 4, 0) == 0


def test_map_follows_the_list_and_ram():
    host = make("list")
    call(host, 62, 10, 0)
    assert shared(host) == [62, 63]
    call(host, 63, 1, 1)
    assert shared(host) == [62]
    assert host.regions == [(62, 63), (64, 72)]


def test_get_list():
    host = make()
    host.wrmsr(0x4B564D08, 2, StandInVcpu())
    assert host.get_shared_pages_list(bytearray(64), 64) == (-22, 0), "not opted in"
    host.wrmsr(0x4B564D08, 3, StandInVcpu())
    assert host.get_shared_pages_list(bytearray(64), 64) == (0, 0)
    call(host, 1, 1, 0)
    call(host, 9, 2, 0)
    assert host.get_shared_pages_list(bytearray(64), 0) == (-22, 0)
    assert host.get_shared_pages_list(bytearray(64), 31) == (-7, 0)
    assert host.get_shared_pages_list(bytearray(16), 32) == (-14, 0)
    buffer = bytearray(64)
    assert host.get_shared_pages_list(buffer, 32) == (0, 2)
    assert struct.unpack_from("<4Q", buffer) == (1, 2, 9, 11)


def test_no_rdmsr_as_posted():
    with pytest.raises(GuestFault):
        make().rdmsr(0x4B564D08, StandInVcpu())
    host = make("msr-read")
    host.wrmsr(0x4B564D08, 3, StandInVcpu())
    assert host.rdmsr(0x4B564D08, StandInVcpu()) == 1, "a flag is kept, not the value"


def test_ends_of_a_range_are_translated():
    host = make()
    host.slots.error_frames = {9}
    assert call(host, 7, 2, 0) == (1 << 64) - 22
    assert host.regions == []
    assert host.slots.leaked_references == 1


def test_get_counts_before_the_lock():
    def grow(host):
        return lambda: call(host, 20, 1, 0)

    host = make()
    call(host, 1, 1, 0)
    assert host.get_shared_pages_list(bytearray(64), 64, grow(host)) == (0, 1)
    (finding,) = host.findings
    assert (finding.kind, finding.amount) == (FindingKind.OUT_OF_BOUNDS, 16)
    repaired = make("get-race")
    call(repaired, 1, 1, 0)
    assert repaired.get_shared_pages_list(bytearray(64), 64, grow(repaired)) == (0, 2)
    assert repaired.findings == ()


def test_set_appends_and_reset_leaves_freed_regions_linked():
    host = make()
    call(host, 1, 1, 0)
    assert host.set_shared_pages_list(struct.pack("<2Q", 4, 6), 1) == 0
    assert shared(host) == [1, 4, 5]
    assert host.set_shared_pages_list(None, 0) == 0
    assert shared(host) == []
    call(host, 2, 1, 0)
    assert [finding.kind for finding in host.findings] == [FindingKind.USE_AFTER_FREE]


def test_set_repaired_replaces():
    host = make("set-ioctl")
    call(host, 1, 1, 0)
    assert host.set_shared_pages_list(struct.pack("<4Q", 4, 6, 5, 8), 2) == 0
    assert (host.regions, host.count) == ([(4, 8)], 1)
    assert shared(host) == [4, 5, 6, 7]
    host.set_shared_pages_list(None, 0)
    call(host, 2, 1, 0)
    assert host.findings == ()


@pytest.mark.parametrize(
    ("count", "result"), [(-1, -12), (1 << 40, -12), (3, -14), ((4 << 20) // 16 + 1, -12)]
)
def test_set_with_a_bad_count(count, result):
    assert make().set_shared_pages_list(bytes(32), count) == result


def test_repeated_harm_is_logged_once_and_growing_harm_each_time():
    log = findings.FindingLog()
    for amount in (16, 16, 8, 32):
        log.add(FindingKind.OUT_OF_BOUNDS, amount, "x", "M40")
    log.add(FindingKind.OUT_OF_BOUNDS, 8, "x", "M31")
    assert [found.amount for found in log.found] == [16, 32, 8]


def test_nodes_beyond_the_bound_are_a_finding(monkeypatch):
    monkeypatch.setattr("guestemu.host.kvm.shared_list_v10.HOST_MEMORY_BOUND", 3 * 32)
    host = make("list")
    for gfn in range(0, 8, 2):
        call(host, gfn, 1, 0)
    assert [finding.amount for finding in host.findings] == [4 * 32]
    assert isinstance(host, findings.ReportsFindings)
