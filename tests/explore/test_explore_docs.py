# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/explore.md shows is what the command prints and the model counts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from published import surviving, tallies

from guestemu.cli.main import main
from guestemu.migration.model.notation import parse_rules, parse_script
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import SCRIPTS

TEXT = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ guestemu (.*)\n((?:.*\n)*?)```", TEXT)
RULES = re.findall(r"^\| `([a-z-]+)`(?:, `([a-z-]+)`)? \| (\d+) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), BLOCKS)
def test_a_shown_command_prints_what_is_shown(
    command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(shlex.split(command))
    assert capsys.readouterr().out == output


@pytest.mark.parametrize(("first", "second", "count"), RULES)
def test_the_cells_kept_by_each_rule(first: str, second: str, count: str) -> None:
    for name in filter(None, (first, second)):
        assert surviving(tallies(parse_rules([name]))) == int(count)


def test_every_rule_and_script_is_documented() -> None:
    assert len(BLOCKS) == 3
    names = {field.replace("_", "-") for field in Rules.__struct_fields__}
    assert {name for rule in RULES for name in rule[:2] if name} == names - {
        "undefined-from-hypercall"
    }
    assert "`undefined-from-hypercall`" in TEXT
    for script in SCRIPTS:
        row = re.search(rf"^\| {script.name} \| `(.*)` \|$", TEXT, re.MULTILINE)
        assert row is not None
        assert parse_script(row[1]).steps == script.steps
