# SPDX-License-Identifier: GPL-2.0-or-later
"""Exported programs compile without a warning and hold what the program's run held."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError, MissingError
from guestemu.cli.main import main
from guestemu.export import real_kvm
from guestemu.export.c_source import FORMS, SELFTEST, UNIT_TEST, c_source
from guestemu.export.real_kvm import SelftestRun
from guestemu.export.steps import steps_of
from guestemu.oracle import image
from guestemu.oracle.image import TestedKernel, find_kernel
from guestemu.oracle.qemu import MachineEnded
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
A_KERNEL = TestedKernel(name="6.12", kernel=Path("vmlinuz"), modules={})
PROGRAM_STEPS = steps_of(parse_text(PROGRAM, "test"))


def test_steps_are_what_kvm_sees() -> None:
    steps = PROGRAM_STEPS
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
    source.write_text(c_source(form, "a title with */ in it", PROGRAM_STEPS))
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


class _Ended:
    """A machine that ends with `console`."""

    console = ""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        raise MachineEnded("QEMU ended with status 0", 0, self.console)


def run_on(console: str, monkeypatch: pytest.MonkeyPatch) -> SelftestRun:
    monkeypatch.setattr(real_kvm, "build_static", lambda _directory, _units: b"")
    monkeypatch.setattr(real_kvm, "Qemu", type("_This", (_Ended,), {"console": console}))
    return real_kvm.run_test(SELFTEST, "", A_KERNEL)


def test_a_selftest_under_qemu_says_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    console = "[    0.1] kernel\n# step 1: exits 0x0, expected 0x1\n1..1\nnot ok 1 4 steps\n"
    run = run_on(f"{console}guestemu: selftest 1\n", monkeypatch)
    assert run.status == 1
    assert run.lines == ("# step 1: exits 0x0, expected 0x1", "1..1", "not ok 1 4 steps")
    with pytest.raises(MissingError, match="the test did not end"):
        run_on(console, monkeypatch)


@pytest.mark.parametrize("form", FORMS)
def test_init_with_the_test_in_it_is_one_static_program(form: str) -> None:
    try:
        program = real_kvm._program(form, c_source(form, "a test", PROGRAM_STEPS))
    except MissingError as error:
        pytest.skip(str(error))
    assert program.startswith(b"\x7fELF")
    assert b"rdmsr msr=0x4b564d08" in program
    assert (b"SUMMARY: " in program) == (form == UNIT_TEST)


def test_a_unit_test_is_run_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(image, "find_kernel", lambda name: A_KERNEL)
    ran = SelftestRun("6.12", 1, ("FAIL: step 0",))
    monkeypatch.setattr(real_kvm, "run_test", lambda form, *_rest: asked.append(form) or ran)
    program = str(CORPORA / "conversion" / "round-trip-6.1.prog")
    assert main(["export", program, "--as", "kvm-unit-test", "--run", "6.12"]) == 1
    assert asked == [UNIT_TEST]


@pytest.mark.soak
def test_a_real_kvm_shows_what_the_program_shows() -> None:
    """And a test that fails is seen to fail there."""
    kernel = find_kernel("6.12")
    source = c_source(SELFTEST, "a test", PROGRAM_STEPS)
    assert real_kvm.run_test(SELFTEST, source, kernel).status == 0
    wrong = source.replace("static int failures;", "static int failures = 1;")
    assert wrong != source
    run = real_kvm.run_test(SELFTEST, wrong, kernel)
    assert run.status == 1
    assert run.lines[-1].startswith("not ok 1 ")


@pytest.mark.soak
def test_a_real_kvm_shows_it_to_a_unit_test() -> None:
    """And an expectation that is wrong is seen there, at its step."""
    kernel = find_kernel("6.12")
    run = real_kvm.run_test(UNIT_TEST, c_source(UNIT_TEST, "a test", PROGRAM_STEPS), kernel)
    assert (run.status, run.lines[-1]) == (0, f"SUMMARY: {len(PROGRAM_STEPS)} tests")
    assert all(line.startswith("PASS: step ") for line in run.lines[:-1])
    refused = next(step for step in PROGRAM_STEPS if step.what == "VMMCALL" and not step.exits)
    place = PROGRAM_STEPS.index(refused)
    steps = list(PROGRAM_STEPS)
    steps[place] = msgspec.structs.replace(refused, ret=0)
    run = real_kvm.run_test(UNIT_TEST, c_source(UNIT_TEST, "a test", steps), kernel)
    assert run.status == 1
    assert run.lines[place].startswith(f"FAIL: step {place}: ")
    assert run.lines[-1].endswith(" tests, 1 unexpected failures")
