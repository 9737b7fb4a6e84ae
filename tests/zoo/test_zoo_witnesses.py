# SPDX-License-Identifier: GPL-2.0-or-later
"""Every planted bug violates its check on its witness, and its repaired twin violates nothing.

The witnesses (witnesses/ID.ops, one op a line) were found by campaigns and shrunk; they are for
these tests only, no campaign starts from them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from guestemu.campaign.planted.bug import Configuration
from guestemu.campaign.planted.catalogue import BUGS
from guestemu.program.text import parse_text
from guestemu.runner.testbed import Testbed

WITNESSES = Path(__file__).parent / "witnesses"


def ops_of(bug_id: str, configuration: Configuration):
    header = configuration.header
    text = (WITNESSES / f"{bug_id}.ops").read_text()
    words = ["guestemu-program 1", f"vcpus {header.vcpus}", f"memory {header.memory}", "---", text]
    return parse_text("\n".join(words), f"{bug_id}.ops").ops


@cache
def repaired_testbed(name: str, bug_id: str) -> Testbed:
    return BUGS[bug_id].repaired.build()


_FIRST = {bug.repaired.name: bug.id for bug in reversed(BUGS.values())}


@pytest.mark.parametrize("bug_id", BUGS)
def test_witness(bug_id: str):
    bug = BUGS[bug_id]
    ops = ops_of(bug_id, bug.planted)
    planted = bug.planted.build().run(ops)
    assert bug.check in {violation.check for violation in planted.violations}
    repaired = repaired_testbed(bug.repaired.name, _FIRST[bug.repaired.name]).run(ops)
    assert repaired.violations == ()


def test_no_witness_without_a_bug():
    assert {path.stem for path in WITNESSES.glob("*.ops")} == set(BUGS)


def test_an_answer_waits_while_kvm_answers_itself():
    """Found by a campaign on a repaired configuration: hypercall 11 is no exit to user space."""
    text = "answer value=0x8000000000000000 count=2\nhypercall nr=11 a0=0 a1=4 a2=0 a3=0"
    ops = parse_text(f"guestemu-program 1\n---\n{text}", "answer.ops").ops
    bug = BUGS["M20"]
    assert repaired_testbed(bug.repaired.name, "M20").run(ops).violations == ()
