# SPDX-License-Identifier: GPL-2.0-or-later
"""Exported programs compile without a warning and hold what the program's run held."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.cli.main import main
from guestemu.export.c_source import FORMS, c_source
from guestemu.export.steps import steps_of
from guestemu.program.text import load_program, parse_text

CORPORA = Path(__file__).parents[2] / "corpora"
PROGRAM = """\
guestemu-program 1
guest snippet:6.1
---
set_memory_decrypted D[3] pages=2
hypercall nr=12 a0=0x800 a1=1 a2=0
answer value=-22
hypercall nr=12 a0=0x1000 a1=1 a2=0x10
rdmsr msr=0x4b564d08
fail_msr count=1
wrmsr msr=0x4b564d08 value=1
"""
"""Two that reach user space, between them one that KVM refuses, and MSRs with and without #GP."""


def test_steps_are_what_kvm_sees() -> None:
    steps = steps_of(parse_text(PROGRAM, "test"))
    calls = [step for step in steps if step.what == "VMMCALL"]
    assert [step.exits for step in calls][-2:] == [False, True]
    assert calls[-2].ret == (1 << 64) - 22
    assert calls[-1].args == (0x1000, 1, 0x10, 0)
    assert [(step.what, step.faults) for step in steps[-2:]] == [("RDMSR", False), ("WRMSR", True)]
    assert all(step.exits for step in calls[:-2])


@pytest.mark.parametrize("form", FORMS)
def test_the_c_compiles_alone_without_a_warning(form: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "test.c"
    steps = steps_of(parse_text(PROGRAM, "test"))
    source.write_text(c_source(form, "a title with */ in it", steps))
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-c", "-o", "/dev/null"]
    done = subprocess.run(
        [compiler, *flags, str(source)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_c_has_a_step_for_each_exit(tmp_path: Path) -> None:
    output = tmp_path / "round-trip.c"
    path = CORPORA / "conversion" / "round-trip-6.1.prog"
    assert main(["export", str(path), "-o", str(output)]) == 0
    text = output.read_text()
    assert len(re.findall(r"\.what = VMMCALL", text)) == len(steps_of(load_program(path)))
    assert "@" not in text


@pytest.mark.parametrize(
    ("ops", "problem"),
    [
        ("write D[3]", "makes no hypercall and no MSR access"),
        ("hypercall nr=12 a0=0x1000 a1=1 mode=compat32", "not 64-bit code at CPL 0"),
    ],
)
def test_what_cannot_be_exported_is_said(ops: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        steps_of(parse_text(f"guestemu-program 1\nguest snippet:6.1\n---\n{ops}\n", "test"))


def test_a_page_state_change_cannot_be_exported() -> None:
    text = "guestemu-program 1\nguest snippet:6.12\nsev snp\n---\nset_memory_decrypted D[3]\n"
    with pytest.raises(InputError, match="SNP and TDX guests cannot be exported"):
        steps_of(parse_text(text, "test"))


def test_another_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = CORPORA / "conversion" / "round-trip-6.1.prog"
    assert main(["export", str(path), "--as", "tap"]) == 2
    assert "take one of kvm-selftest, kvm-unit-test" in capsys.readouterr().err
