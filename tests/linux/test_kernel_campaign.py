# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on a real kernel finds what is known of it, and nothing where nothing is injected."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main


@pytest.fixture
def fuzz(image_of, capsys, tmp_path):
    def command(series, *words):
        words = ("--engine", "random", "--seed", "1", "--workdir", str(tmp_path), *words)
        status = main(
            ["fuzz", "conversion", "--guest", f"linux:{image_of(series)}", "--json", *words]
        )
        return json.loads(capsys.readouterr().out), status

    return command


def test_the_ignored_answer_of_the_host_is_found(fuzz):
    found, status = fuzz("6.12", "--faults", "--execs", "100")
    assert status == 1
    checks = {(finding["check"], finding["key"].split("-")[1]) for finding in found["findings"]}
    assert ("status", "set_memory_decrypted") in checks  # the host's error is ignored (A17)


def test_6_1_without_injected_failures_breaks_no_rule(fuzz):
    found, status = fuzz("6.1", "--execs", "1000")
    assert found["findings"] == []
    assert (status, found["executions"]) == (0, 1000)
