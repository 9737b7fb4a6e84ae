# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ledger says about the policies of May 2021, as the facts state it (C19, C20, M2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from guestemu.abi.addresses import PAGE_SIZE, U64_MASK
from guestemu.checks.lost import LOST_DEFINED
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed
from guestemu.study.ledger.cell import Row
from guestemu.study.ledger.flows import find_flows
from guestemu.study.ledger.matrix import find_failures, run_flow_rows
from guestemu.study.ledger.policies import POLICIES, find_policies
from guestemu.study.ledger.rig import Rig

Rows = Callable[[str, str, str], list[Row]]


@pytest.fixture(scope="module")
def rows() -> Iterator[Rows]:
    """Lines of one failure in one flow under one policy; each combination is run once."""
    rigs: dict[str, Rig] = {}
    known: dict[tuple[str, str, str], list[Row]] = {}

    def run(policy: str, flow: str, failure: str) -> list[Row]:
        if policy not in rigs:
            rigs[policy] = Rig(find_policies((policy,), ())[0])
        key = (policy, flow, failure)
        if key not in known:
            rig, one = rigs[policy], find_flows((flow,))[0]
            known[key] = list(run_flow_rows(rig, one, find_failures((failure,))))
        return known[key]

    yield run
    for rig in rigs.values():
        rig.close()


def failed(lines: list[Row], when: str = "before") -> list[Row]:
    return [row for row in lines if row.step >= 0 and row.when == when]


@pytest.mark.parametrize("policy", [policy.name for policy in POLICIES])
def test_nothing_is_lost_or_noticed_without_a_failure(rows: Rows, policy: str) -> None:
    for flow in ("decrypt-3", "re-encrypt", "split", "dma-alloc", "dma-free", "boot", "kexec"):
        for row in rows(policy, flow, "host-einval"):
            if row.step < 0:
                assert (row.migration, row.lost, row.lost_strict) == ("completed", 0, 0)
                assert row.noticed_by == ()


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("flow", ["decrypt-3", "re-encrypt", "early"])
def test_warn_alone_loses_exactly_the_page_that_was_not_notified(
    rows: Rows, flow: str, when: str
) -> None:
    for row in failed(rows("warn", flow, "host-einval"), when):
        assert row.migration == "completed"
        assert (row.lost, row.lost_strict) == (1, 1)
        assert 0.95 * PAGE_SIZE < row.lost_bytes <= PAGE_SIZE
        assert row.noticed_by == ("guest log", "checks")


def test_a_failed_lookup_loses_the_rest_of_the_range(rows: Rows) -> None:
    lost = [row.lost for row in failed(rows("warn", "decrypt-3", "lookup"))]
    assert lost == [3, 2, 1]


def test_a_leaf_of_2_mib_is_lost_as_a_whole(rows: Rows) -> None:
    (row,) = failed(rows("warn", "decrypt-2m", "host-einval"))
    assert row.lost == 512


@pytest.mark.parametrize("policy", ["upstream-5.17", "upstream-6.1", "upstream-6.12", "ignore"])
@pytest.mark.parametrize("answer", ["host-enosys", "host-einval", "host-ebusy", "host-garbage"])
def test_upstream_drops_the_answer_and_nobody_knows(rows: Rows, policy: str, answer: str) -> None:
    for row in failed(rows(policy, "decrypt-3", answer)):
        assert row.lost == 1
        assert row.noticed_by == ("checks",)


def test_upstream_warns_of_a_failed_lookup(rows: Rows) -> None:
    for row in failed(rows("upstream-6.1", "decrypt-3", "lookup")):
        assert row.noticed_by == ("guest log", "checks")


def test_msr_zero_before_a_migration_loses_nothing_and_costs_the_time_out(rows: Rows) -> None:
    for row in failed(rows("msr-zero", "decrypt-3", "host-einval")):
        assert (row.migration, row.waited, row.lost) == ("timed out", "time-out", 0)
        assert set(row.noticed_by) == {"vmm", "migration", "checks"}


def test_msr_zero_in_a_migration_helps_only_if_the_vmm_aborts(rows: Rows) -> None:
    for row in failed(rows("msr-zero", "decrypt-3", "lookup"), "during"):
        assert (row.migration, row.lost) == ("completed", 3 - row.step)
        assert "vmm" in row.noticed_by
    for row in failed(rows("msr-zero-abort", "decrypt-3", "lookup"), "during"):
        assert (row.migration, row.lost) == ("aborted", 0)


@pytest.mark.parametrize("policy", ["stop-call", "permanent"])
def test_a_signal_of_its_own_needs_no_time_out(rows: Rows, policy: str) -> None:
    for row in failed(rows(policy, "decrypt-3", "host-einval")):
        assert (row.migration, row.waited, row.lost) == ("refused", "", 0)
    for row in failed(rows(policy, "decrypt-3", "host-einval"), "during"):
        assert (row.migration, row.lost) == ("aborted", 0)


def test_ready_at_the_end_of_the_boot_undoes_msr_zero_but_not_permanent(rows: Rows) -> None:
    undone = failed(rows("msr-zero", "boot", "host-einval"))[-1]
    assert (undone.migration, undone.lost) == ("completed", 3)
    kept = failed(rows("permanent", "boot", "host-einval"))[-1]
    assert (kept.migration, kept.lost) == ("refused", 0)


def test_bug_kills_the_guest_and_loses_nothing(rows: Rows) -> None:
    for failure in ("host-einval", "lookup"):
        for row in failed(rows("bug", "decrypt-3", failure)):
            assert (row.migration, row.lost) == ("guest dead", 0)
            assert "guest death" in row.noticed_by


def test_a_propagated_error_makes_the_caller_leak_its_pages(rows: Rows) -> None:
    for flow in ("decrypt-3", "re-encrypt", "early"):
        for row in failed(rows("propagate", flow, "host-einval")):
            assert (row.leaked, row.lost) == (3, 0)
            assert row.noticed_by == ("caller",)


def test_callers_up_to_6_8_free_pages_that_are_shared(rows: Rows) -> None:
    for row in failed(rows("propagate", "dma-alloc", "host-einval")):
        assert row.leaked == 0
        assert row.lost == 3 - row.step
        assert row.noticed_by == ("caller", "checks")
    for row in failed(rows("propagate-leak", "dma-alloc", "host-einval")):
        assert (row.leaked, row.lost) == (3, 0)


def test_a_failed_split_leaves_a_prefix_that_the_host_does_not_know(rows: Rows) -> None:
    first, second = failed(rows("upstream-6.1", "split", "split"))
    assert (first.lost_strict, second.lost_strict) == (0, 2)
    assert first.noticed_by == second.noticed_by == ("caller",)
    assert (first.leaked, first.lost, second.lost) == (4, 0, 0)


def test_5_17_reports_a_range_whose_change_failed(rows: Rows) -> None:
    """The two generations fail in opposite directions (A19): with no page changed, 5.17 has told
    the host that all three are. Pages that were changed have no content any more."""
    given_up = failed(rows("upstream-5.17", "decrypt-3", "cpa"))
    assert [row.lost for row in given_up] == [0, 0, 0]
    over = [row.lost_strict for row in given_up]
    under = [row.lost_strict for row in failed(rows("upstream-6.1", "decrypt-3", "cpa"))]
    assert (over, under) == ([3, 3, 3], [0, 1, 2])


def test_a_hole_is_filled_and_another_page_overwritten(rows: Rows) -> None:
    first, *behind = failed(rows("upstream-6.1", "decrypt-3", "hole"))
    assert first.migration == "guest dead"
    for row in behind:
        assert (row.corrupted, row.lost) == (1, 1)
        assert row.noticed_by == ("checks",)
    for row in failed(rows("upstream-6.1", "decrypt-3", "absent")):
        assert row.migration == "guest dead"


def test_a_lost_zero_lets_the_old_record_be_used_after_kexec(rows: Rows) -> None:
    normal, refused = rows("upstream-6.1", "kexec-window", "msr-gp")
    assert (normal.migration, normal.waited, normal.lost) == ("completed", "reboot", 0)
    assert (refused.migration, refused.waited, refused.lost) == ("completed", "", 3)
    assert refused.noticed_by == ("guest log",)


def test_an_off_lined_cpu_blocks_migration_until_the_time_out(rows: Rows) -> None:
    normal = rows("upstream-6.1", "cpu-offline", "msr-gp")[0]
    assert (normal.migration, normal.waited) == ("timed out", "time-out")


def test_the_ledger_counts_what_the_check_lost_counts() -> None:
    """The same experiment as a program: two definitions of lost, one number."""
    bed = build_testbed(Header(guest="snippet:6.1"))
    pages = 3
    for refused in (1, 2, 3):
        ops = (
            Op(OpKind.INIT_PLATFORM, (0,)),
            Op(OpKind.ANSWER, (-22 & U64_MASK, refused)),
            Op(OpKind.SET_MEMORY_DECRYPTED, (pages, 0)),
            *(Op(OpKind.WRITE, (0xA0 + page, 0, PAGE_SIZE), page=page) for page in range(pages)),
            Op(OpKind.MIGRATE_START, (pages, 0)),
            Op(OpKind.HOST_DIRTY_FETCH, (1,)),
            Op(OpKind.HOST_STATUS_COPY),
            Op(OpKind.HOST_SEND, (0,)),
            Op(OpKind.MIGRATE_STOP),
            *(Op(OpKind.READ, (0,), page=page) for page in range(pages)),
        )
        found = [one for one in bed.run(ops).violations if one.check == LOST_DEFINED]
        assert len(found) == refused
        if refused == 1:
            message = found[0].message
    bed.close()
    rig = Rig(find_policies(("upstream-6.1",), ())[0])
    flow = find_flows(("decrypt-3",))[0]
    row = next(
        row for row in run_flow_rows(rig, flow, find_failures(("host-einval",))) if row.step == 0
    )
    rig.close()
    assert row.lost == 1
    assert f"({row.lost_bytes} bytes differ)" in message
