# SPDX-License-Identifier: GPL-2.0-or-later
"""The target `migration`: programs are migrations by one order of host steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.errors import InputError
from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.migration_ops import MAX_OPS, PAGES, migration_limiter, steps_of
from guestemu.campaign.session import Plan, Report, Session
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import find_target
from guestemu.checks.lost import LOST_STRICT
from guestemu.migration.host_ops import HOST_OP_KINDS
from guestemu.program.binary import RECORD_SIZE, OpDecoder
from guestemu.program.ops import Op, OpKind, Region, canonical_op
from guestemu.program.text import load_program

TARGET = find_target("migration")
DECODE = OpDecoder(1, False, TARGET.kinds_with(True)).decode
OPS = st.binary(max_size=MAX_OPS * RECORD_SIZE).map(DECODE)
STEP_KINDS = HOST_OP_KINDS
START, STOP = OpKind.MIGRATE_START, OpKind.MIGRATE_STOP


def fuzz(target: str, execs: int, faults: bool = False, store: Store | None = None) -> Report:
    chosen = find_target(target)
    plan = Plan(chosen, chosen.header, faults=faults, seed=1, execs=execs)
    session = Session(plan, store)
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    return session.make_report()


def test_what_the_target_ignores_is_the_name_of_a_violation():
    assert TARGET.ignored == {LOST_STRICT}


def store_in(path: Path, target: str) -> Store:
    return Store.create(path / "work", CampaignRecord(target, "", "", 39, False), resume=False)


@settings(max_examples=200, deadline=None, database=None)
@given(ops=OPS, order=st.sampled_from(["DES", "EDS", "GECS", "DL", "DEEDSS"]))
def test_any_ops_become_a_migration_by_the_order(ops, order):
    limited = migration_limiter(order)(ops, True)
    kinds = [op.kind for op in limited]
    assert kinds.count(START) == kinds.count(STOP) == 1
    assert kinds[0] is START
    assert len(limited) <= MAX_OPS
    end = kinds.index(STOP)
    steps = [op for op in limited if op.kind in STEP_KINDS]
    expected = steps_of(order)
    assert steps == expected * (len(steps) // len(order))
    assert list(limited[end - len(order) : end]) == expected
    assert not STEP_KINDS & set(kinds[end:])
    assert all(op.page < PAGES and op.region is Region.D for op in limited)
    assert migration_limiter(order)(limited, True) == limited


def test_every_page_that_was_written_is_read_at_the_destination():
    write = canonical_op(Op(OpKind.WRITE, (0x5A, 8, 4096), Region.D, 2))
    limited = migration_limiter("DES")((write,), True)
    end = [op.kind for op in limited].index(STOP)
    assert [(op.kind, op.page) for op in limited[end + 1 :]] == [
        (OpKind.READ, 2),
        (OpKind.READ, 3),
    ]


def test_packets_are_played_with_only_where_the_firmware_sends_them():
    replay = canonical_op(Op(OpKind.LINK_REPLAY))
    assert migration_limiter("DES")((replay,), True)[0].arguments == (PAGES, 1)
    assert migration_limiter("DES")((), True)[0].arguments == (PAGES, 0)


@pytest.mark.parametrize("order", ["", "DE", "DXS", "DESDESS"])
def test_an_order_that_is_none(order):
    with pytest.raises(InputError, match="such as DES"):
        steps_of(order)


def test_only_migrations_have_an_order():
    assert find_target("migration:EDS").order == "EDS"
    with pytest.raises(InputError, match="only migration and mirror take an order"):
        find_target("hypercall:EDS")


def test_the_right_order_loses_nothing_and_the_destination_goes_on():
    report = fuzz("migration", 150)
    assert report.executions == 150
    assert report.findings == []


@pytest.mark.parametrize("order", ["EDS", "ESD", "GECS"])
def test_a_wrong_order_loses_what_was_written(order, tmp_path):
    target = f"migration:{order}"
    store = store_in(tmp_path, target)
    report = fuzz(target, 60, store=store)
    found = [finding for finding in report.findings if finding.check == "lost_defined"]
    assert found
    limit = migration_limiter(order)
    for finding in found:
        ops = load_program(store.finding_path(finding.key)).ops
        assert limit(ops, True) == ops  # minimised among the programs of this order


def test_packets_replayed_and_reordered_are_found():
    report = fuzz("migration", 40, faults=True)
    assert {finding.check for finding in report.findings} & {
        *("packet_replayed", "packet_reordered", "packet_moved")
    }
