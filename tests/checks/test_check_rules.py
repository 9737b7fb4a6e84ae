# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of checks at their borders, on operations written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitarray import bitarray

from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL as CONTROL
from guestemu.checks.base import PAGE_ENC_CONTRACTS
from guestemu.checks.free import FreePagesCheck
from guestemu.checks.migration_control import MigrationControlCheck
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.ready import ReadyCheck
from guestemu.events.exits import HypercallExit, RdmsrExit, WrmsrExit
from guestemu.machine.exits import Shutdown
from guestemu.program.ops import Op, OpKind

WRITE = Op(OpKind.WRMSR, (CONTROL, 1))
READ = Op(OpKind.RDMSR, (CONTROL,))
PLATFORM = Op(OpKind.INIT_PLATFORM, (0,))
NOTIFY = HypercallExit(12, (0, 1, 0, 0), 0, 0)
REFUSED = HypercallExit(12, (0, 1, 0, 0), (1 << 64) - 22, 0)
OTHER_READ = RdmsrExit(0x8B, (), 7, 0)
OTHER_WRITE = WrmsrExit(0x8B, (2,), 2, 0)


def wrmsr(value: int, ret: int | None) -> WrmsrExit:
    return WrmsrExit(CONTROL, (value,), ret, 0)


def rdmsr(ret: int | None) -> RdmsrExit:
    return RdmsrExit(CONTROL, (), ret, 0)


def view(op: Op, *exits, before=False, after=False, index=1, end=None, wrong=0):
    host_map = bitarray("1") * 8
    host_map[:wrong] = 0
    host = SimpleNamespace(
        contract_state=True,
        serves_migration_control=True,
        migration_ready=after,
        private_map=lambda: host_map,
        lie=False,
    )
    leaf_map = SimpleNamespace(private=bitarray("1") * 8)
    return SimpleNamespace(
        index=index,
        op=op,
        exits=list(exits),
        host=host,
        guest=SimpleNamespace(leaf_map=leaf_map, td=None),
        ready_before=before,
        outcome=SimpleNamespace(end=end),
        injected=(0, 0),
    )


def at_level(op: Op, cpl: int) -> Op:
    return Op(op.kind, op.arguments, cpl=cpl)


@pytest.mark.parametrize(
    ("seen", "is_right"),
    [
        (view(WRITE, wrmsr(1, 1), after=True), True),
        (view(WRITE, wrmsr(1, 1), after=False), False),
        (view(WRITE, wrmsr(0, 0), before=True, after=True), False),
        (view(WRITE, wrmsr(2, None)), True),
        (view(WRITE, wrmsr(2, 2)), False),
        (view(WRITE, wrmsr(1, None)), False),
        (view(READ, rdmsr(0)), True),
        (view(READ, rdmsr(1)), False),
        (view(READ, rdmsr(1), before=True, after=True), True),
        (view(at_level(WRITE, 3), wrmsr(1, None)), True),
        (view(at_level(WRITE, 3), wrmsr(0, 0)), False),
        (view(at_level(READ, 3), rdmsr(None)), True),
        (view(at_level(READ, 3), rdmsr(0)), False),
        (view(at_level(PLATFORM, 3), wrmsr(1, 1), after=True), True),
        (view(PLATFORM, wrmsr(2, 2), NOTIFY), False),
        (view(PLATFORM, NOTIFY, NOTIFY, after=True), False),
        (view(PLATFORM, NOTIFY, after=True), True),
        (view(PLATFORM, after=True), True),
        (view(PLATFORM, OTHER_READ, OTHER_WRITE), True),
        (view(PLATFORM, OTHER_READ, wrmsr(1, 1), OTHER_WRITE, after=True), True),
        (view(PLATFORM, OTHER_WRITE, wrmsr(2, 2)), False),
    ],
)
def test_migration_control(seen, is_right) -> None:
    assert bool(MigrationControlCheck().after(seen)) is not is_right


def test_the_latch_is_judged_on_hosts_of_no_patch_set() -> None:
    hosts = [SimpleNamespace(contract=name) for name in ("map-gpa-range", "")]
    assert all(map(MigrationControlCheck.applies, hosts))
    older = [SimpleNamespace(contract=name) for name in PAGE_ENC_CONTRACTS]
    assert not any(map(MigrationControlCheck.applies, older))


def test_migration_control_says_which_way_the_host_is_wrong() -> None:
    (allows,) = MigrationControlCheck().after(view(PLATFORM, NOTIFY, wrmsr(0, 0), after=True))
    assert "the host allows migration while the last value written is 0" in allows.message
    (refuses,) = MigrationControlCheck().after(view(PLATFORM, NOTIFY, wrmsr(1, 1)))
    assert "the host does not allow migration" in refuses.message


def test_an_ordered_failure_is_used_up() -> None:
    check = MigrationControlCheck()
    order = Op(OpKind.FAIL_MSR, (1, 0))
    refused = view(WRITE, wrmsr(1, None))
    assert not check.after(view(order, index=0))
    assert not check.after(refused)
    assert check.after(refused)
    check.after(view(order, index=0))
    assert check.after(view(WRITE, wrmsr(1, 1), after=True)), "it was to fail"
    check.after(view(order, index=0))
    assert check.after(view(WRITE, wrmsr(1, None), index=0)), "of another program"


def test_ready_is_judged_when_the_latch_goes_up() -> None:
    check = ReadyCheck()
    assert check.after(view(PLATFORM, after=True, wrong=1))
    assert not check.after(view(PLATFORM, after=True))
    assert not check.after(view(PLATFORM, before=True, after=True, wrong=1))
    assert not check.after(view(PLATFORM, wrong=1))
    assert not check.after(view(WRITE, after=True, wrong=1))


def test_a_shutdown_is_one_whatever_the_host_answered() -> None:
    end = Shutdown(reason="triple fault", rip=0x1000)
    for exits in ((), (NOTIFY,), (REFUSED,)):
        assert ProgressCheck().after(view(PLATFORM, *exits, end=end))


def test_free_pages_are_judged_after_both_operations_of_the_allocator() -> None:
    allocator = {OpKind.DMA_ALLOC, OpKind.DMA_FREE}
    allocator |= {OpKind.DMA_ALLOC_PAGES, OpKind.DMA_FREE_PAGES}
    assert FreePagesCheck.kinds == allocator


@pytest.mark.parametrize("who", ["shared in the page tables", "shared for the host"])
def test_a_free_page_is_private_in_the_page_tables_and_for_the_host(who) -> None:
    def free(tables: str, record: str, frames: str | None) -> list[str]:
        seen = view(Op(OpKind.DMA_FREE, (0,)))
        seen.free_frames = None if frames is None else bitarray(frames)
        seen.guest.leaf_map.private = bitarray(tables)
        seen.host.private_map = lambda: bitarray(record)
        return [found.message for found in FreePagesCheck().after(seen)]

    maps = ("10011111", "11111111")
    tables, record = maps if "tables" in who else maps[::-1]
    assert free(tables, record, "01110000") == [f"2 free frames are {who}, the first at GPA 0x1000"]
    assert free(tables, record, "00100000") == [f"1 free frames are {who}, the first at GPA 0x2000"]
    assert free(tables, record, "10010000") == []
    assert free(tables, record, None) == []
    assert len(free("01111111", "01111111", "11111111")) == 2
