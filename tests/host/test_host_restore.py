# SPDX-License-Identifier: GPL-2.0-or-later
"""`restore` leaves a host as `reset` does, whatever ran before."""

import random

import pytest

from guestemu.host.base import GuestFault, Host, Hypercall
from guestemu.host.kvm.host import MergedHost
from guestemu.host.registry import hosts, load_host
from guestemu.host.standin import StandInVcpu
from guestemu.machine.exits import VcpuAccess

FRAMES = 512
NAMES = [entry.name for entry in hosts()]
INDICES = [0x4B564D08, 0x4B564D02, 0x4B564D05, 0x4B564D00, 0x1234]


def trial(host: Host, vcpu: VcpuAccess, seed: int) -> list[object]:
    """Random exits and orders; everything a guest or a check could see of them."""
    rng = random.Random(seed)
    seen: list[object] = [host.migration_ready, host.state, host.private_map().copy()]
    for _ in range(12):
        try:
            what = rng.randrange(6)
            if what == 0:
                seen.append(host.rdmsr(rng.choice(INDICES), vcpu))
            elif what == 1:
                host.wrmsr(rng.choice(INDICES), rng.choice([0, 1, 2]), vcpu)
            elif what == 2 and isinstance(host, MergedHost):
                host.inject_answer(rng.getrandbits(64), 2)
            elif what == 3 and isinstance(host, MergedHost):
                host.inject_msr_error(1)
            else:
                nr = rng.choice([12, 12, 12, 5, 99])
                gpa = rng.randrange(2 * FRAMES) << 12 | rng.choice([0, 0, 0, 8])
                call = Hypercall(nr, gpa, rng.randrange(8), rng.choice([0, 16]), 0, 0, True, vcpu)
                seen.append(host.hypercall(call))
        except GuestFault as fault:
            seen.append((fault.vector, fault.error_code))
        except Exception as error:  # QEMU stops the VM
            seen.append(type(error).__name__)
        seen.append((host.state, host.migration_ready, host.private_map().copy()))
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_host_behaves_as_a_new_one(name: str) -> None:
    used, vcpu = load_host(name), StandInVcpu()
    used.reset(FRAMES)
    for seed in range(40):
        fresh = load_host(name)
        fresh.reset(FRAMES)
        used.restore(FRAMES)
        assert trial(used, vcpu, seed) == trial(fresh, vcpu, seed)


def test_restoring_another_size_makes_a_host_of_that_size() -> None:
    host = load_host("map-gpa-range")
    host.reset(FRAMES)
    host.restore(2 * FRAMES)
    assert len(host.private_map()) == 2 * FRAMES
    host.restore(FRAMES)
    assert len(host.private_map()) == FRAMES


def test_stale_bytes_of_the_run_page_do_not_outlive_a_restore() -> None:
    host = load_host("map-gpa-range:6.1")
    assert isinstance(host, MergedHost)
    host.reset(FRAMES)
    host.inject_answer(77, 1)
    vcpu = StandInVcpu()
    host.hypercall(Hypercall(12, 0, 1, 0, 0, 0, True, vcpu))
    assert host.kvm.run.hypercall.ret == 77
    host.restore(FRAMES)
    request = host.kvm.run.hypercall
    assert (request.nr, request.ret, request.longmode, set(request.args)) == (0, 0, 0, {0})
