# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on a migration through handlers: who notices, what is lost, which check fails."""

from __future__ import annotations

import pytest

from guestemu.abi.addresses import to_signed
from guestemu.abi.errno import EINVAL, EIO
from guestemu.checks import mirror as checks
from guestemu.host.mirror.host import MirrorPrototypeHost
from guestemu.program.program import Header
from guestemu.program.text import parse_text
from guestemu.runner.testbed import Outcome, build_testbed
from guestemu.study.mirror.noticed import ThreatCell, ThreatWitness, threat_cells
from guestemu.study.mirror.threats import HANDLERS, THREATS

SWITCHES = MirrorPrototypeHost.switches


def run(text: str, host: str = "mirror", defects: tuple[str, ...] = ()) -> Outcome:
    """Runs ops, one a line; of `mirror-2021` all defects but `defects` are repaired."""
    switches = tuple(name for name in SWITCHES if name not in defects) if defects else ()
    ops = parse_text("guestemu-program 1\n---\n" + text, "text").ops
    header = Header(host="mirror-2021" if defects else host, switches=switches)
    testbed = build_testbed(header)
    try:
        return testbed.run(ops)
    finally:
        testbed.close()


def failed(outcome: Outcome) -> set[str]:
    return {violation.check for violation in outcome.violations}


def results(outcome: Outcome) -> list[int]:
    return [to_signed(one.outcome.value or 0, 64) for one in outcome.results]


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], ThreatCell]:
    return {(cell.handlers, cell.threat): cell for cell in threat_cells(HANDLERS, THREATS)}


def names(table: dict[tuple[str, str], ThreatCell], handlers: str, by: ThreatWitness) -> set[str]:
    return {
        threat
        for (name, threat), cell in table.items()
        if (name, cell.noticed_by) == (handlers, by)
    }


NO_ONE_CAN_NOTICE = {
    "export of a shared page",  # F15
    "private page told shared",  # F9: a guest harms itself
    "shared page told private",
}
NO_ORDER = {"restore to another page", "the same packet twice", "packets out of order"}


def test_a_handler_that_binds_packets_notices_all_but_a_wrong_status(
    table: dict[tuple[str, str], ThreatCell],
) -> None:
    assert names(table, "bound", ThreatWitness.NOBODY) == NO_ONE_CAN_NOTICE
    assert all(table["bound", threat].lost for threat in NO_ONE_CAN_NOTICE)
    assert names(table, "bound", ThreatWitness.VMM) == {"store into the handler's code"}


def test_without_address_and_order_pages_are_replaced_by_old_and_other_ones(
    table: dict[tuple[str, str], ThreatCell],
) -> None:
    assert names(table, "unbound", ThreatWitness.NOBODY) == NO_ONE_CAN_NOTICE | NO_ORDER
    assert "0xa5a5" in table["unbound", "packets out of order"].lost


def test_the_prototype_notices_what_is_no_command(
    table: dict[tuple[str, str], ThreatCell],
) -> None:
    assert names(table, "prototype", ThreatWitness.HANDLER) == {
        *("an unknown command", "save of an unaligned page", "store into the handler's key")
    }
    assert "destination's handler" in table["prototype", "restore over the handler"].lost


def test_nothing_is_lost_where_somebody_noticed(
    table: dict[tuple[str, str], ThreatCell],
) -> None:
    assert [cell for cell in table.values() if cell.lost and cell.noticed_by != "nobody"] == []


def test_what_a_guest_loses_by_a_lie_is_no_violation() -> None:
    lie = "mirror_write place=0 page=1\nmirror_tell place=0 page=1 private=0\n"
    assert failed(run(lie + "mirror_migrate place=0 page=1")) == set()


def test_a_guest_that_breaks_its_handler_is_left_where_it_is() -> None:
    outcome = run("mirror_write place=0 page=1\nmirror_poke page=0\nmirror_migrate place=0 page=1")
    assert failed(outcome) == set()
    assert results(outcome)[-1] == -EIO


@pytest.mark.parametrize("value", range(0xD8, 0xE0))
def test_a_handler_that_became_x87_code_does_not_end_the_emulator(value: int) -> None:
    """Unicorn pull request 2372: some 240 of them in a row overrun a table."""
    migrate = "mirror_migrate place=0 page=1\n"
    outcome = run(f"{migrate}mirror_poke page=0 value={value:#x}\n{migrate}")
    assert results(outcome) == [0, 0, -EIO]


def test_a_page_of_the_handler_is_written_by_poke_only() -> None:
    assert results(run("mirror_write place=5\nmirror_poke page=0")) == [-EINVAL, 0]


def test_a_new_session_begins_behind_a_refused_packet() -> None:
    outcome = run(
        "mirror_setup proposal=1 other_build=1\n"
        "mirror_migrate place=6\n"
        "mirror_write place=0 page=1\n"
        "mirror_migrate place=0 page=1\n"
        "mirror_load place=0 page=1"
    )
    assert failed(outcome) == set()
    assert results(outcome) == [0, -EIO, 0, 0, 0x5A5A5A5A5A5A5A5A]


@pytest.mark.parametrize(
    ("defect", "ops", "check"),
    [
        (
            "copy-form",
            "mirror_write place=0\nmirror_migrate place=0",
            checks.READABLE,
        ),
        ("cbit-47", "mirror_setup proposal=1", checks.STOPPED),
        ("block-offset-skip", "mirror_migrate place=7", checks.SKIPPED),
        (
            "unchecked-status",
            "mirror_write place=0 shared=1\nmirror_migrate place=0",
            checks.EXPORTED,
        ),
        (
            "no-guard",
            "mirror_setup proposal=1 other_build=1\n"
            "mirror_write place=6 page=1\nmirror_migrate place=6 page=1",
            checks.OVERWRITTEN,
        ),
        (
            "block-gpa",
            "mirror_setup proposal=0\nmirror_write place=4\nmirror_migrate place=4",
            checks.LOST,
        ),
        (
            "unbound",
            "mirror_write place=0\nmirror_save place=0\nmirror_restore packet=0 place=2",
            checks.ACCEPTED,
        ),
    ],
)
def test_each_defect_of_the_prototype_fails_its_check(defect: str, ops: str, check: str) -> None:
    assert check in failed(run(ops, defects=(defect,)))
    assert failed(run(ops)) == set()


def test_every_defect_is_tested_here() -> None:
    (mark,) = test_each_defect_of_the_prototype_fails_its_check.pytestmark
    assert {case[0] for case in mark.args[1]} == set(SWITCHES)
