# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore` from the outside."""

from __future__ import annotations

import json

import pytest
from published import TABLE

from guestemu.cli.main import main

Captured = pytest.CaptureFixture[str]


def answer(capsys: Captured, status: int, *arguments: str) -> dict[str, object]:
    assert main(["explore", *arguments, "--json"]) == status
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_table_as_json(capsys: Captured) -> None:
    found = answer(capsys, 1, "--table", "--reduce")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert {(row["row"], row["script"]): (row["losing"], row["total"]) for row in rows} == TABLE
    assert all(row["losing"] == row["lost_strict"] >= row["lost_defined"] for row in rows)
    assert found["states"] == sum(row["states"] for row in rows)
    assert found["reduced_states"] == sum(row["reduced"]["states"] for row in rows)
    assert found["disagreements"] == 0
    assert float(str(found["seconds"])) > 0


def test_the_table_as_text(capsys: Captured) -> None:
    assert main(["explore"]) == 1
    lines = capsys.readouterr().out.splitlines()[3:]
    assert lines[0].split() == ["order", "S1", "S1b", "S1c", "S2", "S3", "S0"]
    assert lines[1].split()[-7:] == [
        *("0/120", "0/120", "51/120", "0/1716", "328/792", "(0)", "127/330")
    ]
    assert main(["explore", "--reduce", "--order", "1"]) == 1
    assert capsys.readouterr().out.count("same") == 6


def test_a_cell_that_loses_nothing_is_status_0(capsys: Captured) -> None:
    assert main(["explore", "--order", "1", "--script", "S1"]) == 0
    assert "lost_strict   0 of 120 interleavings" in capsys.readouterr().out


def test_a_users_own_order_and_script(capsys: Captured) -> None:
    found = answer(capsys, 1, "--order", "E D S", "--script", "PTE- HC- t7!", "--passes", "2")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert (rows[0]["order"], rows[0]["losing"], rows[0]["total"]) == ("enc, auto, send", 7, 120)
    assert rows[0]["script_steps"] == "PTE- HC- t7!"


def test_a_rule_changes_the_count(capsys: Captured) -> None:
    cell = ("--order", "2", "--script", "S1")
    found = answer(capsys, 1, *cell)["rows"]
    changed = answer(
        capsys, 0, *cell, "--rule", "source-key-is-readable", "--rule", "final-sends-always"
    )["rows"]
    assert isinstance(found, list)
    assert isinstance(changed, list)
    assert (found[0]["losing"], changed[0]["losing"]) == (7, 0)


def test_a_witness_shows_its_steps_and_why(capsys: Captured) -> None:
    assert main(["explore", "--order", "2", "--script", "S1", "--witness", "1"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("The page is lost: PTE- E D S E HC- t1! D S STOP\n")
    assert "t1 is lost: the destination holds garbage" in text
    found = answer(capsys, 1, "--order", "2", "--script", "S1", "--witness", "1")
    shown = found["witnesses"]
    assert isinstance(shown, list)
    assert shown[0]["interleaving"] == "PTE- E D S E HC- t1! D S STOP"
    assert shown[0]["rank"] == 1
    assert [step["step"] for step in shown[0]["steps"]] == shown[0]["interleaving"].split()
    assert shown[0]["steps"][-1]["destination"] == "garbage"


def test_the_list_of_losing_interleavings(capsys: Captured) -> None:
    assert main(["explore", "--order", "3", "--script", "S1b", "--list"]) == 1
    assert capsys.readouterr().out == "0  G E HC- PTE- t1! C S G E C S STOP\n"
    assert main(["explore", "--order", "1", "--script", "S3", "--list", "--defined"]) == 0
    assert capsys.readouterr().out == ""


def test_random_exploration(capsys: Captured) -> None:
    cell = ("--order", "2", "--script", "S1", "--pct", "500", "--depth", "3", "--seed", "4")
    found = answer(capsys, 1, *cell)
    result = found["result"]
    assert isinstance(result, dict)
    assert result["runs"] == 500
    assert result["total"] == 120
    assert 0 < result["miss_bound"] < 1
    assert main(["explore", *cell]) == 1
    assert f"lost_strict               {result['lost_strict']}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "9"], "--order: no row 9 in the table"),
        (["--script", "PTE- what"], "--script, step 2: no guest step 'what'"),
        (["--order", "G E"], "nothing is ever sent"),
        (["--witness", "0"], "give --order and --script"),
        (["--order", "2", "--script", "S1", "--witness", "7"], "give 0 to 6"),
        (["--order", "1", "--script", "S1", "--witness", "0"], "there is none to show"),
        (["--order", "1", "--script", "S1", "--witness", "0", "--list"], "do different things"),
        (["--table", "--order", "1"], "--table is about all cells"),
        (["--table", "--defined"], "--defined goes with --witness or --list"),
        (["--order", "1", "--script", "S1", "--list", "--reduce"], "--reduce has no meaning"),
        (["--order", "1", "--script", "S1", "--pct", "9", "--depth", "99"], "--depth 99"),
        (["--order", "2", "--script", "S2", "--passes", "30", "--list"], "--witness K shows one"),
        (["--reduce", "--passes", "101"], "--reduce goes up to --passes 100"),
        (["--rule", "x"], "--rule: no rule 'x'"),
        (["--passes", "0"], "--passes"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: Captured
) -> None:
    assert main(["explore", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
