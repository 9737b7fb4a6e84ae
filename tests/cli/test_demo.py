# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu demo` and `guestemu init`: what a new user runs first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from guestemu.cli import _demo
from guestemu.cli.main import main
from guestemu.program.text import load_program

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "demo" / "forgotten-error.prog"


def test_act_1_loses_the_page_only_if_the_host_forgets() -> None:
    program = load_program(PROGRAM)
    forgotten = _demo.migrated_bytes(program)
    assert forgotten.written == b"A" * 16
    assert forgotten.arrived != forgotten.written
    noted = _demo.migrated_bytes(msgspec.structs.replace(program, ops=program.ops[1:]))
    assert noted.arrived == noted.written == b"A" * 16


def test_act_1_shows_the_bytes_and_the_violation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(PROGRAM, tmp_path / PROGRAM.name)
    assert _demo.first_act(tmp_path)
    out = capfd.readouterr().out
    assert "the guest wrote                    41 41 41" in out
    assert "AAAAAAAAAAAAAAAA" in out
    assert "! violation of status: host: GPA 0x400000 (D[0]) is private, expected shared" in out


def test_act_2_names_the_line_with_the_bug(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(ROOT / "examples" / "my_host.py", tmp_path / "my_host.py")
    assert _demo.second_act(tmp_path, ("--execs", "1500", "--engine", "random", "--seed", "1"))
    out = capfd.readouterr().out
    assert "record-hypercall-" in out
    assert "my_host.py:16: call = msgspec.structs.replace(call, a1=call.a1 - 1)" in out


def test_act_3_is_left_out_where_there_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _demo.third_act(tmp_path, may_fetch=False)
    assert "Left out: there is no kernel image here. `guestemu kernel fetch`" in (
        capfd.readouterr().out
    )


def test_init_makes_the_example_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my host"]) == 0
    out, err = capsys.readouterr()
    assert "my host/.github/workflows/guestemu.yml" in out.splitlines()
    assert "next: cd 'my host'; guestemu hosts --check vmm_host.py:VmmHost" in err
    monkeypatch.chdir(tmp_path / "my host")
    assert main(["replay", "programs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] == 4


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert main(["init", str(tmp_path)]) == 2
    assert "not empty; name a new directory" in capsys.readouterr().err
