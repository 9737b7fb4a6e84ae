# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/migration.md shows is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from guestemu.cli.main import main
from guestemu.program.ops import MIGRATION_SPECS

TEXT = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")


def test_the_shown_command_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ((command, output),) = re.findall(r"```console\n\$ guestemu (.*)\n((?:.*\n)*?)```", TEXT)
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == output


def test_the_shown_program_does_what_it_expects(tmp_path: Path) -> None:
    (program,) = re.findall(r"```\n(guestemu-program 1\n(?:.*\n)*?)```", TEXT)
    (tmp_path / "shown.prog").write_text(program)
    assert main(["replay", str(tmp_path)]) == 0


def test_every_operation_is_documented_with_its_defaults() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)(?: PAGE)?` \| (?:`(.*?)`)? ?\|", TEXT, re.MULTILINE))
    for spec in MIGRATION_SPECS.values():
        arguments = " ".join(f"{one.name}={one.default}" for one in spec.arguments)
        assert rows[spec.name] == arguments
