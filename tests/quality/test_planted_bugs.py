# SPDX-License-Identifier: GPL-2.0-or-later
"""The random engine finds every planted bug within a number of executions, and minimises it."""

from __future__ import annotations

import msgspec
import planted_hosts
import pytest

from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.planted.catalogue import BUGS as ZOO
from guestemu.campaign.session import Plan, Report, Session
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import TARGETS, find_target
from guestemu.host.base import Host
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.program.text import load_program


class Bug(msgspec.Struct, frozen=True):
    host: type[Host]
    target: str
    check: str
    execs: int
    ops: int = 1


BUGS = (
    Bug(planted_hosts.WordBoundary, "hypercall", "record", 3000),
    Bug(planted_hosts.AttributeBit0, "hypercall", "record", 500),
    Bug(planted_hosts.Pages16, "hypercall", "record", 3000),
    Bug(planted_hosts.LastPage, "hypercall", "record", 500),
    Bug(planted_hosts.WrongErrno, "hypercall", "results", 500),
    Bug(planted_hosts.LatePrivilege, "hypercall", "results", 2000),
    Bug(planted_hosts.NoPages, "hypercall", "results", 1000),
    Bug(planted_hosts.Wraps, "hypercall", "results", 3000),
    Bug(planted_hosts.NumberOnly32, "hypercall", "results", 2000),
    Bug(planted_hosts.NextNumber, "hypercall", "results", 3000),
    Bug(planted_hosts.EncryptIgnored, "hypercall", "record", 500, 2),
    Bug(planted_hosts.ReservedBits, "msr", "migration-control", 500),
    Bug(planted_hosts.ReadsZero, "msr", "migration-control", 1000, 2),
    Bug(planted_hosts.StickyReady, "msr", "migration-control", 1000, 2),
    Bug(planted_hosts.LargeLeaf, "conversion", "record", 800),
    Bug(planted_hosts.EncryptIgnored, "conversion", "record", 200, 2),
    Bug(planted_hosts.AttributeBit0, "conversion", "record", 400),
    Bug(planted_hosts.WordBoundary, "conversion", "record", 400),
    Bug(planted_hosts.EncryptIgnored, "lockstep", "lockstep-status", 100, 2),
    Bug(planted_hosts.WrongErrno, "lockstep", "lockstep-answer", 2000),
)


def run_random(
    target: str, host: Host, execs: int, seed: int = 1, store: Store | None = None
) -> Report:
    chosen = find_target(target)
    session = Session(Plan(chosen, chosen.header, seed=seed, execs=execs), store, host=host)
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    return session.make_report()


LONG = {
    ("EncryptIgnored", "lockstep"),
    ("WrongErrno", "lockstep"),
    ("WordBoundary", "conversion"),
}
"""As much of one target as its other rows, and a quarter or half a minute each."""


def marked(bug: Bug):
    is_long = (bug.host.__name__, bug.target) in LONG
    return pytest.param(bug, marks=pytest.mark.soak if is_long else ())


@pytest.mark.parametrize(
    "bug", list(map(marked, BUGS)), ids=[f"{bug.host.__name__}-{bug.target}" for bug in BUGS]
)
def test_planted_bug_is_found_and_minimal(bug, tmp_path):
    record = CampaignRecord(bug.target, "", "", 39, False)
    store = Store.create(tmp_path / "work", record, resume=False)
    report = run_random(bug.target, bug.host(), bug.execs, store=store)
    found = [finding for finding in report.findings if finding.check == bug.check]
    assert found
    assert not report.unstable
    sizes = [len(load_program(store.finding_path(finding.key)).ops) for finding in found]
    assert min(sizes) == bug.ops


@pytest.mark.parametrize(
    ("target", "execs"),
    [("hypercall", 4000), ("msr", 3000), ("conversion", 300), ("lockstep", 60)],
)
def test_reference_host_has_no_findings(target, execs):
    report = run_random(target, MapGpaRangeHost(), execs)
    assert report.executions == execs
    assert report.findings == []
    assert report.unstable == []


@pytest.mark.parametrize("seed", [2, 3])
def test_same_bug_has_the_same_key_in_every_campaign(seed):
    keys = [
        {
            finding.key
            for finding in run_random("msr", planted_hosts.ReservedBits(), 400, s).findings
        }
        for s in (1, seed)
    ]
    assert keys[0] & keys[1]


def test_a_bug_met_often_is_one_finding():
    report = run_random("hypercall", planted_hosts.WrongErrno(), 1500)
    assert len(report.findings) <= 2
    assert sum(finding.count for finding in report.findings) > 100


@pytest.mark.parametrize(
    ("execs", "checks"),
    [(80, {"status"}), pytest.param(300, {"status", "frames"}, marks=pytest.mark.soak)],
)
def test_faults_find_the_known_defects_of_the_guest(execs, checks):
    target = find_target("conversion")
    session = Session(Plan(target, target.header, faults=True, seed=1, execs=execs))
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    assert {finding.check for finding in session.make_report().findings} >= checks


def test_every_target_has_bugs_to_find():
    in_the_zoo = {bug.target for bug in ZOO.values()}
    elsewhere = {
        "migration",  # tests/campaign/test_migration_target.py
        "device",  # tests/linux/test_fuzz_device.py
    }
    assert {bug.target for bug in BUGS} | in_the_zoo | elsewhere >= set(TARGETS)
