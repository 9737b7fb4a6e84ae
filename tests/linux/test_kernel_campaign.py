# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on a real kernel finds what is known of it, and nothing where nothing is injected."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from guestemu.campaign.ranges import MAX_PAGES
from guestemu.campaign.triage.probe import Probe
from guestemu.campaign.triage.single import findings_of
from guestemu.cli.main import main
from guestemu.program.ops import Op, OpKind, Region
from guestemu.program.program import Header, Program


@pytest.fixture
def fuzz(image_of, capsys, tmp_path):
    def command(series, *words):
        words = ("--engine", "random", "--seed", "1", "--workdir", str(tmp_path), *words)
        status = main(
            ["fuzz", "conversion", "--guest", f"linux:{image_of(series)}", "--json", *words]
        )
        return json.loads(capsys.readouterr().out), status

    return command


@pytest.mark.soak
def test_the_ignored_answer_of_the_host_is_found(fuzz):
    found, status = fuzz("6.12", "--faults", "--execs", "10")
    assert status == 1
    checks = {(finding["check"], finding["key"].split("-")[1]) for finding in found["findings"]}
    assert ("status", "set_memory_decrypted") in checks  # the host's error is ignored (A17)


def test_6_1_without_injected_failures_breaks_no_rule(fuzz):
    found, status = fuzz("6.1", "--execs", "300")
    assert found["findings"] == []
    assert (status, found["executions"]) == (0, 300)


def test_a_search_on_a_kernel_runs_each_program_once_and_none_that_takes_minutes(
    image_of, monkeypatch
):
    ran = Counter()
    run = Probe._run

    def record(probe, ops, traced):
        ran[ops, traced] += 1
        return run(probe, ops, traced)

    monkeypatch.setattr(Probe, "_run", record)
    answer = Op(OpKind.ANSWER, (1, 1))
    convert = Op(OpKind.SET_MEMORY_DECRYPTED, (3, 0), Region.D, 7)
    header = Header(guest=f"linux:{image_of('6.1')}")
    (found,) = findings_of(Program(header, (answer, convert)))
    assert found.ops == (answer, Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D))
    searched = [count for (ops, _), count in ran.items() if ops and ops[-1].kind is convert.kind]
    assert len(searched) > 20
    assert set(searched) == {1}
    longest = max(op.arguments[0] for ops, _ in ran for op in ops if op.kind is convert.kind)
    assert longest <= MAX_PAGES
