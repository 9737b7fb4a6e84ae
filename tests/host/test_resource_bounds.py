# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest makes its host allocate is counted, not suffered: our own memory stays bounded."""

from __future__ import annotations

import tracemalloc

import pytest

from guestemu.host.kvm.findings import HOST_MEMORY_BOUND, FindingKind, ReportsFindings
from guestemu.host.kvm.shared_list_v10 import NODE_BYTES
from guestemu.host.registry import hosts, load_host
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.base import VmStopped

FRAMES = 256
U64 = (1 << 64) - 1
EXTREMES = [
    (0xFFFF_FFFF_FFFF_F000, 1),
    (0, U64),
    (0, 1 << 63),
    (0x1000, U64 - 1),
    (0, 1 << 52),
    ((1 << 52) - 0x1000, 1 << 40),
]
OUR_BOUND = 1 << 20


def opted_in(name, switches=()):
    host = load_host(name, switches)
    host.reset(FRAMES)
    if host.serves_migration_control and name[-2:] not in {"v1", "v2", "v3"}:
        host.wrmsr(0x4B564D08, 1, StandInVcpu())
    return host


@pytest.mark.parametrize("enc", [0, 16])
@pytest.mark.parametrize("name", [entry.name for entry in hosts()])
def test_extreme_ranges_cost_us_nothing(name, enc):
    host = opted_in(name)
    number = getattr(host, "number", 12)
    calls = [StandInVcpu().hypercall(number, gpa, pages, enc) for gpa, pages in EXTREMES]
    tracemalloc.start()
    for call in calls:
        try:
            host.hypercall(call)
        except VmStopped:
            continue
        finally:
            _, peak = tracemalloc.get_traced_memory()
            assert peak < OUR_BOUND
    tracemalloc.stop()
    assert len(host.private_map()) == FRAMES


@pytest.mark.parametrize("name", ["bitmap-v1", "bitmap-v3", "bitmap-v6"])
def test_largest_bitmap_is_reported_in_bytes(name):
    host = opted_in(name)
    for shift in range(20, 40):
        host.hypercall(StandInVcpu().hypercall(host.number, (1 << shift) - 1 << 12, 1, 0))
    assert isinstance(host, ReportsFindings)
    amounts = [found.amount for found in host.findings]
    assert amounts == [1 << shift - 3 for shift in range(28, 40)]
    assert min(amounts) > HOST_MEMORY_BOUND
    assert {found.kind for found in host.findings} == {FindingKind.HOST_MEMORY}


@pytest.mark.soak
def test_millions_of_alternating_pages_on_v10():
    """Every second page shared: one node for each, charged to the VM, without a limit (C24)."""
    host = opted_in("shared-list-v10")
    nodes = 2_000_000
    host.regions = [(gfn, gfn + 1) for gfn in range(0, 2 * nodes, 2)]
    host.count = nodes
    host.hypercall(StandInVcpu().hypercall(12, 4 * nodes << 12, 1, 0))
    (found,) = host.findings
    assert found.amount == (nodes + 1) * NODE_BYTES


def test_list_over_the_bound_is_reported_in_bytes():
    host = opted_in("shared-list-v10")
    nodes = HOST_MEMORY_BOUND // NODE_BYTES
    host.regions = [(gfn, gfn + 1) for gfn in range(0, 2 * nodes, 2)]
    host.hypercall(StandInVcpu().hypercall(12, 4 * nodes << 12, 1, 0))
    (found,) = host.findings
    assert (found.amount, found.source) == ((nodes + 1) * NODE_BYTES, "K2-a, C24")


def test_bitmap_keeps_alternating_pages_beyond_ram_as_ranges():
    host = opted_in("bitmap-v6")
    tracemalloc.start()
    for gfn in range(1 << 20, (1 << 20) + 20_000, 2):
        host.hypercall(StandInVcpu().hypercall(12, gfn << 12, 1, 0))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 4 << 20
    assert host.findings == ()
