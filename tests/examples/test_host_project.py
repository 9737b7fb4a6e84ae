# SPDX-License-Identifier: GPL-2.0-or-later
"""The example project works as its README says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guestemu.cli.main import main

PROJECT = Path(__file__).parents[2] / "examples" / "host-project"
HOST = "vmm_host.py:VmmHost"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    copy = Path(shutil.copytree(PROJECT, tmp_path / "project"))
    monkeypatch.chdir(copy)
    return copy


def test_the_host_and_its_programs_are_right(project, capsys):
    assert main(["hosts", "--check", HOST]) == 0
    assert main(["replay", "programs", "--sarif", "out.sarif", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["passed"] == len(list(project.glob("programs/*.prog"))) == 4
    assert json.loads((project / "out.sarif").read_bytes())["runs"][0]["results"] == []


def test_pytest_without_a_conftest_runs_the_programs(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, check=False
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.soak
def test_the_defect_that_the_readme_proposes_is_found(project, capsys):
    host = project / "vmm_host.py"
    text = host.read_text()
    assert "stop > end else" in text
    assert "`stop > end + 1`" in (project / "README.md").read_text()
    host.write_text(text.replace("stop > end else", "stop > end + 1 else"))
    words = ["--engine", "random", "--execs", "15000", "--seed", "1", "--workdir", "work"]
    assert main(["fuzz", "hypercall", "--host", HOST, *words, "--json"]) == 1
    capsys.readouterr()
    assert main(["triage", "work", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found["check"] == "record"
    assert Path(found["program"]).with_suffix(".md").is_file()


def test_commands_of_readme_and_workflow_exist(project, capsys):
    files = (project / "README.md", project / ".github" / "workflows" / "guestemu.yml")
    text = "".join(path.read_text() for path in files)
    commands = re.findall(r"(?:^| )guestemu ([a-z]+) ", text, re.MULTILINE)
    assert {"hosts", "replay", "fuzz", "triage", "report"} <= set(commands)
    main(["--help"])
    listed = capsys.readouterr().out
    assert all(command in listed for command in commands)
