# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu run`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from guestemu.cli.main import main

GOOD = """guestemu-program 1
---
set_memory_decrypted D[3] pages=2
hypercall nr=12 a0=D[3]+0x1 a1=1 a2=0x10
"""
BAD = "guestemu-program 1\n---\nanswer value=-22\nset_memory_decrypted D[3] pages=1\n"
LOOP = "guestemu-program 1\nbudget 5000\n---\nunmap D[3]\nset_memory_decrypted D[3] pages=1\n"
PLUGIN = """from bitarray import bitarray

class Broken:
    def __init__(self): {init}
    def reset(self, frames): self.frames = frames
    def hypercall(self, call): {hypercall}
    def rdmsr(self, index, vcpu): return 0
    def wrmsr(self, index, value, vcpu): pass
    def private_map(self):
        bits = bitarray(self.frames, endian="little")
        bits.setall(True)
        return bits
    migration_ready = False
"""

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def good(tmp_path: Path) -> str:
    return write(tmp_path, GOOD)


def write(directory: Path, text: str, name: str = "a.prog") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


def run_json(capsys: Captured, *arguments: str) -> tuple[int, dict[str, object]]:
    status = main(["run", "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def refused(capsys: Captured, *arguments: str) -> str:
    """The one line of a run that is bad input."""
    assert main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("guestemu: ").rstrip()


def test_json_has_the_keys_of_the_contract(good: str, capsys: Captured) -> None:
    status, found = run_json(capsys, good)
    assert status == 0
    assert found["outcome"] == "ok"
    assert found["violations"] == []
    assert found["events"] == {"answer": 3, "exit": 3, "flip": 2, "op-begin": 2, "op-end": 2}
    calls = found["hypercalls"]
    assert isinstance(calls, list)
    assert [(c["nr"], c["args"][:3], c["ret"]) for c in calls] == [
        (12, [0x403000, 1, 0], 0),
        (12, [0x404000, 1, 0], 0),
        (12, [0x403001, 1, 0x10], -22),
    ]
    assert len(str(found["trace_hash"])) == 64


def test_a_violation_is_explained_and_is_status_1(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path, BAD)
    status, found = run_json(capsys, path)
    assert status == 1
    assert found["outcome"] == "violation"
    (violation,) = found["violations"]
    assert (violation["check"], violation["op"]) == ("status", 1)
    assert main(["run", path]) == 1
    text = capsys.readouterr().out
    assert "! violation of status: host: GPA 0x403000 (D[3]) is private, expected shared" in text
    assert "nothing outside changed [H.4 item 1].\n" in text
    assert "arrives as garbage" in text


def test_steps_for_people(good: str, capsys: Captured) -> None:
    assert main(["run", good]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "snippet:6.1 on map-gpa-range, C-bit 39, 64 MiB, 1 vCPU"
    assert "D[3..4] now shared (2 pages)" in lines
    assert "KVM_HC_MAP_GPA_RANGE gpa=0x403000 (D[3]) pages=1 shared,4K -> 0" in lines
    assert (
        "KVM_HC_MAP_GPA_RANGE gpa=0x403001 (D[3]+0x1) pages=1 private,4K -> -22 (-KVM_EINVAL)"
        in lines
    )
    assert lines[-1].startswith("ok: 0 violations, 3 hypercalls, trace ")


def test_long_operations_are_cut(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path, "guestemu-program 1\n---\nset_memory_decrypted D[3] pages=40\n")
    assert main(["run", path]) == 0
    text = capsys.readouterr().out
    assert "D[3..42] now shared (40 pages)" in text
    assert "... and 29 more exits" in text


def test_overrides(good: str, capsys: Captured) -> None:
    _, newest = run_json(capsys, good)
    status, silent = run_json(capsys, "--guest", "snippet:5.10", good)
    assert status == 1
    assert len(silent["hypercalls"]) == 1
    _, historic = run_json(capsys, "--host", "bitmap-v8", good)
    assert historic["hypercalls"][2]["ret"] == 0
    _, moved = run_json(capsys, "--cbit", "51", "--memory", "128", "--sev", "sev", good)
    assert moved["trace_hash"] == newest["trace_hash"]


def test_faults_run_first(good: str, capsys: Captured) -> None:
    faults = ["--fault", "fail_split after=0", "--fault", "unmap D[4]"]
    assert main(["run", *faults, good]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  0  fail_split after=0"
    assert lines[2] == "  1  unmap D[4]"


def test_a_repair_of_the_header_does_not_go_to_another_host(
    tmp_path: Path, capsys: Captured
) -> None:
    header = "guestemu-program 1\nhost qemu-v4\nswitches msr-zero\n---\n"
    path = write(tmp_path, f"{header}wrmsr msr=0x4b564d08 value=0\n")
    assert run_json(capsys, path)[0] == 0
    assert run_json(capsys, "--host", "map-gpa-range", path)[0] == 0


def test_a_guest_that_loops_is_stopped(tmp_path: Path, capsys: Captured) -> None:
    status, found = run_json(capsys, write(tmp_path, LOOP))
    assert (status, found["outcome"]) == (1, "no-progress")
    assert main(["run", write(tmp_path, LOOP)]) == 1
    assert "did not return: no-progress" in capsys.readouterr().out


def test_an_oops_alone_is_no_finding(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path, "guestemu-program 1\n---\nunmap D[3]\nread D[3]\n")
    status, found = run_json(capsys, path)
    assert (status, found["outcome"], found["violations"]) == (0, "oops", [])
    assert main(["run", path]) == 0
    assert "oops: vector 14, error code 0x0, address 0xffff888000403000" in capsys.readouterr().out


def test_a_host_that_stops_the_vm(tmp_path: Path, capsys: Captured) -> None:
    ops = "hypercall nr=12 a0=0x180000000 a1=1 a2=0x10\nread D[0]\n"
    path = write(tmp_path, f"guestemu-program 1\nhost qemu-10.2\n---\n{ops}")
    status, found = run_json(capsys, path)
    assert (status, found["outcome"]) == (1, "vm-stopped")
    assert found["stopped"]["op"] == 0
    assert main(["run", path]) == 1
    text = capsys.readouterr().out
    assert "VM stopped: QEMU stopped the VM" in text
    assert "not run" in text


def test_the_trace_file_has_the_run_and_every_event(
    tmp_path: Path, good: str, capsys: Captured
) -> None:
    out = tmp_path / "out.jsonl"
    _, found = run_json(capsys, "--trace", str(out), good)
    first, *events = [json.loads(line) for line in out.read_text().splitlines()]
    assert first["event"] == "run"
    assert first["trace_hash"] == found["trace_hash"]
    assert first["events"] == len(events) == sum(found["events"].values())
    assert first["header"]["guest"] == "snippet:6.1"
    kinds = [event["event"] for event in events[:8]]
    assert kinds == ["op-begin", "flip", "flip", "exit", "answer", "exit", "answer", "op-end"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "xen"], "host 'xen': no such host, and not FILE.py:CLASS; use one of "),
        (["--host", "map-gpa-range:2.6"], "kernel '2.6': no KVM model of it"),
        (["--host", "nowhere.py:Host"], "nowhere.py: no such file"),
        (["--guest", "windows"], "guest 'windows': no such guest; use one of linux:IMAGE"),
        (["--guest", "snippet:9.9"], "guest 'snippet:9.9': no such guest"),
        (["--sev", "vbs"], "--sev vbs: take one of sev, es, snp"),
        (["--sev", "es"], "sev es: snippet guests run as plain SEV"),
        (["--cbit", "52"], "cbit 52 is out of range"),
        (["--memory", "7"], "memory 7M: a snippet guest takes 32M to 1048576M"),
        (["--fault", "explode"], "--fault:1: no op 'explode'"),
        (["--fault", ""], "--fault:1: is empty"),
        (["--trace", "out.perfetto"], "--trace out.perfetto: traces are JSON lines"),
        (
            ["--trace", "/nonexistent/out.jsonl"],
            "/nonexistent/out.jsonl: No such file or directory; make its directory",
        ),
    ],
)
def test_bad_options_are_one_line(
    arguments: list[str], message: str, good: str, capsys: Captured
) -> None:
    assert refused(capsys, *arguments, good).startswith(message)


def test_a_smaller_memory_has_no_region_g(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path, "guestemu-program 1\nmemory 4096\n---\nread G[0]\n")
    assert refused(capsys, "--memory", "64", path).startswith("op 0 (read G[0] offset=0): region G")


def test_a_plugin_that_cannot_be_made_is_named_with_its_line(
    tmp_path: Path, capsys: Captured
) -> None:
    text = PLUGIN.format(init="raise ValueError('no key')", hypercall="return 0")
    plugin = write(tmp_path, text, "mine.py")
    message = refused(capsys, "--host", f"{plugin}:Broken", write(tmp_path, GOOD))
    assert message.startswith(f"{plugin}:4: ")
    assert "ValueError: no key" in message


def test_corrupt_programs_are_refused_or_run(tmp_path: Path, capsys: Captured) -> None:
    chooser = random.Random(7)
    data = (GOOD + "expect result -22 at 1\n").encode()
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(chooser.randint(1, 4)):
            position = chooser.randrange(len(changed))
            action = chooser.randrange(3)
            if action == 0:
                changed[position] = chooser.randrange(256)
            elif action == 1:
                del changed[position : position + chooser.randint(1, 9)]
            else:
                changed[position:position] = chooser.randbytes(chooser.randint(1, 4))
        path = tmp_path / "fuzzed.prog"
        path.write_bytes(changed)
        status = main(["run", str(path)])
        out, err = capsys.readouterr()
        assert status in {0, 1, 2}, (bytes(changed), err)
        if status == 2:
            assert out == ""
            assert err.count("\n") == 1


def test_what_is_no_program_at_all(tmp_path: Path, capsys: Captured) -> None:
    assert "Is a directory" in refused(capsys, str(tmp_path))
    assert "No such file" in refused(capsys, str(tmp_path / "none.prog"))
    path = tmp_path / "binary.prog"
    path.write_bytes(b"\x7fELF\x02\x01")
    assert refused(capsys, str(path)).startswith(f"{path}:1:")


def test_help_has_examples(capsys: Captured) -> None:
    assert main(["run", "--help"]) == 0
    assert "guestemu run corpora/conversion/split-failure-6.1.prog" in capsys.readouterr().out
