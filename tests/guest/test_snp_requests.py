# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-state requests made by hand, and a hypervisor that begins to lie: the ops of the targets
`psc` and `hostile-host`, and what their checks see."""

from __future__ import annotations

import pytest

from guestemu.abi.errors import InputError
from guestemu.campaign.targets import TARGETS
from guestemu.host.registry import load_host
from guestemu.machine.psc_lies import LIES
from guestemu.program.text import parse_text
from guestemu.report.trace.run import Run, run_program
from guestemu.report.trace.words import run_word

HEAD = "guestemu-program 1\nguest snippet:6.12\nsev snp\n"


def run(host: str, *ops: str) -> Run:
    return run_program(parse_text(f"{HEAD}host {host}\n---\n" + "\n".join(ops) + "\n", "test"))


def checks(outcome: Run) -> list[str]:
    return [violation.check for violation in outcome.outcome.violations]


@pytest.mark.parametrize(("version", "found"), [("6.11", True), ("6.12", False), ("7.3", False)])
def test_a_buffer_behind_kvms_copy_is_a_finding_until_the_fix(version: str, found: bool) -> None:
    request = "psc D[3] entries=3 header=0x630000 scratch=0x10000 length=24"
    result = run(f"snp-kvm:{version}", request)
    assert ("psc-bounds" in checks(result)) == found


def test_a_good_request_is_none() -> None:
    result = run("snp-kvm", "psc D[3] entries=3", "psc D[3] entries=3 entry=0x10000000000000")
    assert checks(result) == []
    assert [one.outcome.value for one in result.outcome.results] == [0, 0]


def test_a_lie_that_begins_in_a_program_ends_with_it() -> None:
    number = list(LIES).index("malformed")
    ops = (f"hypervisor_lie lie={number}", "set_memory_decrypted D[3] pages=1")
    assert run_word(run("hostile-hypervisor:far", *ops)) == "terminated"
    assert run_word(run("hostile-hypervisor:far", ops[1])) == "ok"


@pytest.mark.parametrize("name", ["psc", "hostile-host"])
def test_the_targets_are_snp_guests(name: str) -> None:
    header = TARGETS[name].header
    assert (header.guest, header.sev.value) == ("snippet:6.12", "snp")
    load_host(header.host, header.switches)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match=r"no KVM '6\.1'"):
        load_host("snp-kvm:6.1")
