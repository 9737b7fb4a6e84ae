# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu ledger`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guestemu.cli.main import main


def test_rows_as_one_json_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "ledger.html"
    options = ("--policy", "warn", "--flow", "decrypt-1", "--failure", "lookup")
    assert main(["ledger", *options, "--json", "--html", str(page)]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    result = json.loads(output)
    row = result["rows"][1]
    assert (row["failure"], row["flow"], row["step"]) == ("lookup", "decrypt-1", 0)
    assert (row["policy"], row["lost"]) == ("warn", 1)
    assert row["noticed_by"] == ["guest log", "checks"]
    assert result["complete"] is True
    assert result["summary"][0]["tally"]["noticed"] == 2
    assert page.read_text().startswith("<!doctype html>")


def test_the_command_of_a_cell_runs_it_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "ledger.html"
    options = ["--sev", "tdx", "--policy", "upstream-7.3", "--flow", "decrypt-3"]
    assert main(["ledger", *options, "--failure", "host-einval", "--html", str(page)]) == 0
    (first, second) = re.findall("<pre>guestemu (ledger [^<]*) --rows</pre>", page.read_text())
    assert sorted(first.split()) == sorted(second.split())
    capsys.readouterr()
    assert main([*first.split(), "--json"]) == 0
    tally = json.loads(capsys.readouterr().out)["summary"][0]["tally"]
    found = f"{tally['leaked']} leaked, {tally['harmless']} harmless"
    assert f"{tally['runs']} run: {found}" in page.read_text()


def test_a_table_of_counts(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--policy", "bug", "--flow", "decrypt-1", "--failure", "lookup", "--rows"]
    assert main(["ledger", *options]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["The", "error", "ledger"]
    assert ["bug", "2", "0", "0", "0", "2", "0", "0", "0"] in rows
    heading = next(n for n, row in enumerate(rows) if row[:4] == "policy flow when failure".split())
    assert rows[heading + 2][:6] == ["bug", "decrypt-1", "before,", "during", "lookup", "0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "x"], "policy 'x': unknown"),
        (["--flow", "x"], "flow 'x': unknown"),
        (["--failure", "x"], "failure 'x': unknown"),
        (["--html", "/nowhere/x.html"], "make its directory, or name another place with --html"),
        (["--sev", "x"], "--sev x: take one of sev, es, snp, tdx"),
        (["--sev", "es"], "our own code has no SEV-ES; add --kernels"),
        (["--sev", "snp", "--policy", "warn"], "policy 'warn': unknown, take one of upstream-6.12"),
        (["--sev", "tdx", "--failure", "host-enosys"], "take one of host-eagain"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_td_s_caller_hears_of_a_refusal_and_an_snp_guest_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--policy", "upstream-7.3", "--flow", "decrypt-3", "--json"]
    seen = {}
    for kind in ("snp", "tdx"):
        assert main(["ledger", "--sev", kind, *options]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["sev"] == kind
        seen[kind] = {
            (row["failure"], row["step"]): (row["noticed_by"], row["migration"], row["lost"])
            for row in result["rows"]
            if row["failure"].startswith(("none", "host-"))
        }
    dead = (["guest log", "guest death"], "guest dead", 0)
    stuck = (["guest death"], "guest dead", 0)
    unharmed = ([], "completed", 0)
    assert seen["snp"] == {
        ("none", -1): unharmed,
        ("host-eagain", 0): dead,
        ("host-einval", 0): dead,
        ("host-minus-einval", 0): dead,
        ("host-garbage", 0): dead,
    }
    assert seen["tdx"] == {
        ("none", -1): unharmed,
        ("host-eagain", 0): unharmed,
        ("host-einval", 0): (["guest log", "caller"], "completed", 0),
        ("host-minus-einval", 0): stuck,
        ("host-garbage", 0): stuck,
    }
