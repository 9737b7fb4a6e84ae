# SPDX-License-Identifier: GPL-2.0-or-later
"""SARIF: valid by its schema, results at the lines of the expectations."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from guestemu.cli.main import main
from guestemu.replay.sarif import sarif_log
from guestemu.replay.suite import replay_all

SCHEMA = Path(__file__).parents[1] / "data" / "sarif" / "sarif-2.1.0-rtm.5.json"
WRONG = "guestemu-program 1\n---\nhypercall a1=1\n\nexpect outcome ok\nexpect hypercalls 2\n"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft4Validator:
    return jsonschema.Draft4Validator(json.loads(SCHEMA.read_bytes()))


def log_of(paths: list[Path], validator: jsonschema.Draft4Validator) -> dict[str, object]:
    log = json.loads(sarif_log(replay_all(paths)))
    validator.validate(log)
    return log["runs"][0]


def test_results_are_valid_and_lie_at_their_lines(tmp_path, monkeypatch, validator):
    monkeypatch.chdir(tmp_path)
    wrong, bad, good = tmp_path / "a b.prog", tmp_path / "bad.prog", tmp_path / "good.prog"
    wrong.write_text(WRONG)
    bad.write_text("nonsense\n")
    good.write_text("guestemu-program 1\n---\n")
    run = log_of([wrong, bad, good], validator)
    places = [result["locations"][0]["physicalLocation"] for result in run["results"]]
    assert [place["artifactLocation"]["uri"] for place in places] == ["a%20b.prog", "bad.prog"]
    assert [place["region"]["startLine"] for place in places] == [6, 1]
    assert [result["ruleId"] for result in run["results"]] == ["hypercalls", "bad-input"]
    rules = run["tool"]["driver"]["rules"]
    assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in run["results"])
    assert "hypercalls 1" in run["results"][0]["message"]["text"]
    assert run["invocations"][0]["executionSuccessful"] is False


def test_an_unexpected_violation_is_one_of_its_rule(tmp_path, validator):
    path = tmp_path / "v.prog"
    path.write_text(
        "guestemu-program 1\nguest snippet:6.1\n---\nanswer value=-22\n"
        "set_memory_decrypted D[0]\n\nexpect violation frames\n"
    )
    run = log_of([path], validator)
    assert [result["ruleId"] for result in run["results"]] == ["violation", "violation"]
    assert "migrates a page by its own record" in run["results"][1]["message"]["text"]


def test_fingerprints_tell_results_apart_and_stay(tmp_path, validator):
    path = tmp_path / "v.prog"
    path.write_text(WRONG.replace("outcome ok", "outcome shutdown"))
    first, again = (log_of([path], validator)["results"] for _ in range(2))
    prints = [result["partialFingerprints"]["expectation/v1"] for result in first]
    assert len(set(prints)) == 2
    assert prints == [result["partialFingerprints"]["expectation/v1"] for result in again]


def test_the_command_writes_it(tmp_path, capsys, validator):
    (tmp_path / "a.prog").write_text(WRONG)
    out = tmp_path / "out.sarif"
    assert main(["replay", str(tmp_path), "--sarif", str(out), "--json"]) == 1
    validator.validate(json.loads(out.read_bytes()))
    assert json.loads(capsys.readouterr().out)["failed"][0]["expectation"] == "expect hypercalls 2"
    assert main(["replay", str(tmp_path), "--sarif", str(tmp_path / "no" / "x")]) == 2
    assert (
        "no/x: No such file or directory; make its directory, or name another place with --sarif"
        in capsys.readouterr().err
    )
