# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore mirror`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestemu.cli.main import main

TEXT = (Path(__file__).parents[2] / "docs" / "mirror.md").read_text(encoding="utf-8")


def test_the_table_and_its_witnesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "mirror", "--programs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cells"]) == 28
    assert found["interrupted"] is False
    cell = next(one for one in found["cells"] if one["fate"] == "refused")
    assert cell["reason"]
    assert len(list(tmp_path.glob("*.prog"))) == 28
    chosen = str(tmp_path / "1-ram-addr-t-unmapped.prog")
    assert main(["replay", chosen, str(tmp_path / "gpa-prototype-vmsa.prog")]) == 0


def test_threats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "mirror", "--threats", "--why"]) == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("packets out of order"))
    assert row.split()[-4:] == ["VMM", "handler", "nobody*", "nobody*"]
    assert "bound, export of a shared page: noticed by nobody: a page: the guest loads" in out


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--threats",), 1)])
def test_the_documentation_shows_what_happens(
    options: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", "mirror", *options]) == status
    command = " ".join(("$ guestemu explore mirror", *options))
    assert f"```console\n{command}\n{capsys.readouterr().out}```\n" in TEXT


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main(["explore", "mirror", "--threats", "--programs", str(file)]) == 2
    assert f"--programs {file}: File exists; give a directory" in capsys.readouterr().err


def test_defects_are_part_of_the_threats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "mirror", "--threats", "--defects"]) == 2
    assert "drop --defects" in capsys.readouterr().err
