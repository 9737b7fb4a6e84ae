# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu targets`, `hosts`, `guests`, `doctor`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guestemu.cli import _machine
from guestemu.cli.main import main
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.host.registry import load_host

Captured = pytest.CaptureFixture[str]

PLUGIN = """from bitarray import bitarray

class Mine:
    def __init__(self): pass
    def reset(self, frames):
        self.bits = bitarray(frames, endian="little")
        self.bits.setall(True)
    def hypercall(self, call): return 0
    def rdmsr(self, index, vcpu): return 0
    def wrmsr(self, index, value, vcpu): pass
    def private_map(self): return self.bits
    migration_ready = False
"""


def listed(capsys: Captured, *arguments: str) -> dict[str, list[dict[str, object]]]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out)
    return found


def test_every_listed_host_loads(capsys: Captured) -> None:
    found = listed(capsys, "hosts")["hosts"]
    assert found[0]["name"] == "map-gpa-range"
    for entry in found:
        assert load_host(str(entry["name"]), entry["switches"])
    assert main(["hosts"]) == 0
    text = capsys.readouterr().out
    assert all(f"{entry['name']}: {entry['summary']}" in text for entry in found)
    assert "    repairs: " in text


def test_listed_snippet_guests_boot(capsys: Captured) -> None:
    found = listed(capsys, "guests")["guests"]
    names = [str(entry["name"]) for entry in found]
    assert [name for name in names if name.startswith("snippet:")] == [
        "snippet:5.10",
        "snippet:2020",
        "snippet:5.17",
        "snippet:6.1",
        "snippet:6.12",
        "snippet:7.3",
    ]
    settings = GuestSettings("snippet:5.10", 39, 64, 1, 1000, True)
    assert load_guest(settings).name == "snippet:5.10"
    assert main(["guests"]) == 0
    assert "snippet:6.12  " in capsys.readouterr().out


def test_targets(capsys: Captured) -> None:
    found = listed(capsys, "targets")["targets"]
    assert {"hypercall", "msr", "conversion"} <= {entry["name"] for entry in found}
    assert all(entry["summary"] for entry in found)
    assert main(["targets"]) == 0
    assert capsys.readouterr().out.startswith("target ")


def test_a_host_of_the_users_is_checked(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    assert main(["hosts", "--check", f"{path}:Mine"]) == 1
    text = capsys.readouterr().out
    assert "FAILED single-ranges: " in text
    assert re.search(r"mine\.py:Mine: \d+ checks, \d+ passed", text)
    assert main(["hosts", "--check", f"{path}:Mine", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {failure["check"] for failure in found["failures"]} <= set(found["checks"])


def test_the_default_host_passes(capsys: Captured) -> None:
    assert main(["hosts", "--check", "map-gpa-range"]) == 0
    assert re.search(r"(\d+) checks, \1 passed", capsys.readouterr().out)


def test_a_plugin_that_cannot_be_checked(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n    pass\n")
    assert main(["hosts", "--check", f"{path}:Mine"]) == 2
    assert capsys.readouterr().err.startswith(f"guestemu: {path}:1: class Mine: no method ")


def test_doctor_finds_what_the_tests_need(capsys: Captured) -> None:
    found = listed(capsys, "doctor")["checks"]
    states = {check["name"]: check["state"] for check in found}
    assert states["python"] == states["unicorn"] == states["exception layout"] == "ok"
    assert states["guest code"] == "ok"
    assert {"native code", "atheris", "binutils", "C compiler", "kernel perf"} <= set(states)
    assert main(["doctor"]) == 0
    assert "ok        unicorn" in capsys.readouterr().out


def test_something_needed_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    versions = {"capstone": None}
    known = _machine._version
    monkeypatch.setattr(_machine, "_version", lambda name: versions.get(name, known(name)))
    assert main(["doctor"]) == 3
    text = capsys.readouterr().out
    assert "missing   capstone         not installed; pip install capstone" in text


def test_something_optional_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(_machine.shutil, "which", lambda _name: None)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "optional  binutils         no as and no objcopy; rebuilding the snippet" in text
    assert "optional  C compiler       none" in text


def test_a_library_that_does_not_work_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fails() -> _machine.Finding:
        raise RuntimeError("no candidates\nin its context")

    monkeypatch.setattr(_machine, "_exception_layout", fails)
    assert main(["doctor"]) == 3
    assert "missing   exception layout no candidates in its context; " in capsys.readouterr().out


def test_an_unknown_verb(capsys: Captured) -> None:
    assert main(["rum"]) == 2
    assert capsys.readouterr().err == "guestemu: no command 'rum'; did you mean run?\n"
