# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu conform` as a user calls it."""

import json
import os
import signal

import pytest
from conform_recordings import CALL, DATA, line, write

from guestemu.cli import _late_progress, console
from guestemu.cli.main import main
from guestemu.conformance.recordings import run
from guestemu.conformance.recordings.kernel_choice import choose_kernel

LINUX_6_1 = str(DATA / "linux-6.1.jsonl")
LINUX_6_12 = str(DATA / "linux-6.12.jsonl")


def conform(capsys, *arguments):
    status = main(["conform", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def conform_json(capsys, *arguments):
    status, out, _ = conform(capsys, *arguments, "--json")
    assert out.count("\n") == 1
    return status, json.loads(out)


@pytest.mark.parametrize(
    ("path", "kernel", "model"),
    [
        (LINUX_6_1, "6.1.0-56-cloud-amd64", "6.1"),
        (LINUX_6_12, "6.12.95+deb12-cloud-amd64", "6.12"),
    ],
)
def test_recordings_agree(capsys, path, kernel, model):
    status, found = conform_json(capsys, path)
    assert status == 0
    assert found.pop("schema").startswith("guestemu.conform/")
    assert found == {
        "kernel": kernel,
        "model": model,
        "steps": 1549,
        "agree": 1549,
        "disagree": [],
        "unsupported": 0,
        "unsupported_steps": [],
    }


def test_another_kernels_model_disagrees(capsys):
    status, found = conform_json(capsys, LINUX_6_12, "--kernel", "6.1")
    assert status == 1
    assert found["model"] == "6.1"
    assert {frozenset(item) for item in found["disagree"]} == {
        frozenset({"id", "step", "field", "expected", "found"})
    }
    steps = {(item["id"], item["step"]) for item in found["disagree"]}
    assert found["agree"] + len(steps) == found["steps"] == 1549
    assert {"id": 132, "step": 0, "field": "events[0]", "expected": None, "found": "HYPERCALL"} in (
        found["disagree"]
    )


def test_finding_of_6_12_as_documented(capsys):
    status, out, _ = conform(capsys, LINUX_6_12, "--repaired")
    assert status == 1
    assert out.splitlines()[1:] == [
        "case  step  field      recorded  model",
        "132   0     events[0]  -         HYPERCALL",
        "138   0     events[0]  -         HYPERCALL",
        "152   0     events[0]  -         HYPERCALL",
        "554   0     events[0]  -         HYPERCALL",
        "disagree: 1549 steps, 1545 agree, 4 disagree, 0 not compared",
    ]


def test_long_lists_are_cut_and_say_so(capsys):
    status, out, _ = conform(capsys, LINUX_6_12, "--kernel", "6.1")
    assert status == 1
    assert "and 167 more fields; --json lists them all" in out


def test_nearest_kernel_is_named(capsys):
    status, _, err = conform(capsys, LINUX_6_12, "--kernel", "6.11")
    assert status == 0
    assert "no model of kernel 6.11: compared with the nearest, 6.12" in err


@pytest.mark.parametrize(
    ("release", "name", "is_exact"),
    [
        ("6.1.0-56-cloud-amd64", "6.1", True),
        ("6.12.95+deb12-cloud-amd64", "6.12", True),
        ("6.18.44", "6.18", True),
        ("5.10.0", "5.15", False),
        ("5.19", "6.1", False),
        ("6.9-rc1", "6.12", False),
        ("6.15", "6.12", False),
        ("7.0.3", "6.18", False),
        ("8.4", "7.3", False),
    ],
)
def test_choice_of_the_model(release, name, is_exact):
    choice = choose_kernel(release, "test")
    assert (choice.kernel.name, choice.is_exact) == (name, is_exact)


def test_kernel_without_a_version(capsys, tmp_path):
    status, _, err = conform(capsys, LINUX_6_1, "--kernel", "debian")
    assert status == 2
    assert err == (
        "guestemu: --kernel: 'debian' has no kernel version; name one, as in --kernel 6.1 "
        "(models: 5.15, 6.1, 6.12, 6.18, 7.2, 7.3)\n"
    )
    path = write(tmp_path / "x.jsonl", meta=json.dumps({"meta": "start", "kernel": "custom"}))
    status, _, err = conform(capsys, str(path))
    assert status == 2
    assert str(path) in err


@pytest.mark.parametrize("number", [1, 2, 700, 1550])
def test_truncated_line_is_named(capsys, tmp_path, number):
    lines = (DATA / "linux-6.1.jsonl").read_text().splitlines()
    lines[number - 1] = lines[number - 1][:-20]
    path = tmp_path / "cut.jsonl"
    path.write_text("\n".join(lines))
    status, out, err = conform(capsys, str(path))
    assert status == 2
    assert out == ""
    assert err.startswith(f"guestemu: {path}:{number}: ")
    assert err.count("\n") == 1


def test_steps_that_are_not_compared_are_told(capsys, tmp_path):
    path = write(tmp_path / "x.jsonl", line("rdmsr", {"msr": "0x10"}))
    status, found = conform_json(capsys, str(path))
    assert status == 0
    assert (found["steps"], found["agree"], found["unsupported"]) == (1, 0, 1)
    status, out, _ = conform(capsys, str(path))
    assert "case 1 step 0 not compared: MSR 0x10" in out


def test_ctrl_c_keeps_what_was_found(capsys, monkeypatch):
    execute = run.Conformance.execute

    def interrupted(self, host, step):
        if step.id > 100:
            os.kill(os.getpid(), signal.SIGINT)
        return execute(self, host, step)

    monkeypatch.setattr(run.Conformance, "execute", interrupted)
    status, found = conform_json(capsys, LINUX_6_1)
    assert status == 130
    assert 0 < found["steps"] == found["agree"] < 100


def test_bar_only_on_a_terminal_and_only_when_it_takes_long(capsys, monkeypatch, tmp_path):
    path = str(write(tmp_path / "x.jsonl", *(line("vmmcall", CALL, case=n) for n in range(50))))
    monkeypatch.setattr(_late_progress, "DELAY_S", 0.0)
    monkeypatch.setattr(_late_progress, "REFRESH_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "50/50" not in conform(capsys, path)[2]
    monkeypatch.setattr(console, "is_live", lambda: True)
    assert "50/50" in conform(capsys, path)[2]
    monkeypatch.setattr(_late_progress, "DELAY_S", 3600.0)
    assert "50/50" not in conform(capsys, path)[2]
