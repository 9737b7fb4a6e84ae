# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a replay pass and fail: each expectation, met and not met."""

from __future__ import annotations

import pytest

from guestemu.program.text import parse_text
from guestemu.replay.expectations import judge
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import run_program

CLEAN = "set_memory_decrypted D[3] pages=2"
VIOLATING = "answer value=-22\nset_memory_decrypted D[3] pages=1"
OOPS = "unmap D[3]\nread D[3]"
REFUSED = "hypercall nr=12 a0=0x1001 a1=1"
STOPPED = "hypercall nr=12 a0=0x180000000 a1=1 a2=0x10\nrdmsr msr=0x4b564d08"


def found(ops: str, *expectations: str, header: str = "") -> list[str]:
    """What the failed expectations found, for a program of `ops`."""
    lines = ["guestemu-program 1", *header.splitlines(), "---", *ops.splitlines()]
    lines += [f"expect {line}" for line in expectations]
    run = run_program(parse_text("\n".join(lines) + "\n", "test"))
    return [mismatch.found for mismatch in judge(run)]


@pytest.mark.parametrize(
    ("ops", "line"),
    [
        (CLEAN, "outcome ok"),
        (CLEAN, "outcome ok at 0"),
        (CLEAN, "violation none"),
        (CLEAN, "violation none at 0"),
        (CLEAN, "hypercalls 2"),
        (CLEAN, "result 0 at 0"),
        (CLEAN, "exception none at 0"),
        (CLEAN, "warning none at 0"),
        (VIOLATING, "outcome violation"),
        (VIOLATING, "violation status"),
        (VIOLATING, "violation status at 1"),
        (OOPS, "exception 14 at 1"),
        (REFUSED, "result -22 at 0"),
        (REFUSED, "result 0xffffffffffffffea at 0"),
        ("wrmsr msr=0x4b564dff value=0", "exception 13 at 0"),
        ("wrmsr msr=0x4b564dff value=0", "outcome exception at 0"),
        ("write D[3] value=0x41\nread D[3]", "value 0x4141414141414141 at 1"),
        ("set_memory_decrypted D[3] pages=1 offset=8", "warning misaligned at 0"),
    ],
)
def test_met(ops: str, line: str) -> None:
    outcome = [] if line.startswith(("outcome", "violation")) else ["outcome ok"]
    if ops == OOPS:
        outcome = ["outcome oops"]
    assert found(ops, *outcome, line) == []


@pytest.mark.parametrize(
    ("ops", "line", "what"),
    [
        (CLEAN, "outcome violation", "outcome ok"),
        (CLEAN, "violation status at 0", "no violation"),
        (CLEAN, "hypercalls 3", "hypercalls 2"),
        (CLEAN, "result -12 at 0", "result 0"),
        (CLEAN, "exception 14 at 0", "exception none"),
        (CLEAN, "warning misaligned at 0", "no warning"),
        (CLEAN, "trace_hash 0123", "trace_hash "),
        (VIOLATING, "violation frames at 1", "violations of status"),
        (VIOLATING, "violation status at 0", "no violation"),
        (OOPS, "outcome ok", "outcome oops"),
        (OOPS, "value 0 at 1", "outcome oops"),
        (OOPS, "exception 13 at 1", "exception 14"),
        (REFUSED, "result -1 at 0", "result -22"),
        ("write D[3]", "result 0 at 0", "the operation gives no value"),
    ],
)
def test_not_met(ops: str, line: str, what: str) -> None:
    assert any(text.startswith(what) for text in found(ops, line))


def test_a_program_without_expectations_must_be_ok() -> None:
    assert found(CLEAN) == []
    assert found(CLEAN, "hypercalls 2") == []
    assert found(VIOLATING)[0].startswith("outcome violation (status at 1: host: GPA 0x403000")
    assert found(VIOLATING, "hypercalls 1", "result 0 at 1")[0].startswith("outcome violation")


def test_named_violations_are_all_there_are() -> None:
    twice = f"{VIOLATING}\nanswer value=-22\nset_memory_decrypted D[9] pages=1"
    assert found(twice, "violation status at 1", "violation status at 3") == []
    assert found(twice, "violation status") == []
    (message,) = found(twice, "outcome violation", "violation status at 1")
    assert message.startswith("host: GPA 0x409000 is private")


def test_an_outcome_line_alone_leaves_the_violations_open() -> None:
    assert found(VIOLATING, "outcome violation") == []


def test_a_vm_stopped_by_user_space() -> None:
    header = "host qemu-10.2"
    assert found(STOPPED, "outcome vm-stopped", "outcome vm-stopped at 0", header=header) == []
    assert found(STOPPED, "outcome vm-stopped", "outcome ok at 1", header=header) == [
        "outcome not run"
    ]
    assert found(STOPPED, "outcome vm-stopped", "value 0 at 1", header=header) == [
        "the operation did not run"
    ]


def test_a_trace_hash_may_be_a_prefix() -> None:
    run = run_program(parse_text(f"guestemu-program 1\n---\n{CLEAN}\n", "test"))
    digest = trace_hash(events_of(run))
    assert len(digest) == 64
    assert found(CLEAN, f"trace_hash {digest}") == []
    assert found(CLEAN, f"trace_hash {digest[:12]}") == []
    assert found(f"{CLEAN}\nread D[3]", f"trace_hash {digest}") != []
