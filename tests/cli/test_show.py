# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu show`: the calls and instructions that it tells are those of the snippet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestemu.cli.main import main

Captured = pytest.CaptureFixture[str]
Calls = list[dict[str, object]]


def show(tmp_path: Path, capsys: Captured, ops: str, *arguments: str) -> list[dict[str, object]]:
    path = tmp_path / "a.prog"
    path.write_text(f"guestemu-program 1\n---\n{ops}\n")
    assert main(["show", "--json", *arguments, str(path)]) == 0
    found: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out)
    assert set(found) == {"schema", "ops"}
    return found["ops"]


def names(calls: Calls) -> list[tuple[object, object, object]]:
    return [(call["depth"], call["name"], call["times"]) for call in calls]


def test_the_call_tree_of_a_conversion(tmp_path: Path, capsys: Captured) -> None:
    (op,) = show(tmp_path, capsys, "set_memory_decrypted D[3] pages=2")
    assert op["op"] == "set_memory_decrypted D[3] pages=2"
    assert op["outcome"] == "ok"
    assert op["value"] == 0
    assert "D[3..4] now shared (2 pages)" in op["steps"]
    assert names(op["calls"]) == [
        (0, "set_memory_decrypted", 1),
        (1, "cpa_init", 1),
        (1, "cpa_flush", 1),
        (2, "TLB flush", 2),
        (1, "change_page_attr_set_clr", 1),
        (2, "", 2),
        (3, "change_page_attr", 1),
        (4, "lookup_address", 1),
        (4, "page-table store", 1),
        (3, "cpa_process_alias", 1),
        (1, "cpa_flush", 1),
        (2, "TLB flush", 2),
        (1, "notify_pages", 1),
        (2, "enc_dec_hypercall", 1),
        (3, "", 2),
        (4, "lookup_address", 1),
        (4, "kvm_sev_hypercall3", 1),
        (5, "hypercall", 1),
    ]


def test_a_warning_and_an_msr_are_sites_of_the_tree(tmp_path: Path, capsys: Captured) -> None:
    ops = "set_memory_decrypted D[3] pages=1 offset=8\ncpu_offline"
    first, second = show(tmp_path, capsys, ops)
    assert (1, "WARN misaligned", 1) in names(first["calls"])
    assert names(second["calls"]) == [
        (0, "kvm_guest_cpu_offline", 1),
        (1, "write_migration_control", 1),
        (2, "MSR access", 1),
    ]


def test_a_function_that_was_jumped_to_returns_to_the_caller(
    tmp_path: Path, capsys: Captured
) -> None:
    (op,) = show(tmp_path, capsys, "init_platform", "--depth", "2")
    assert names(op["calls"]) == [
        (0, "kvm_init_platform", 1),
        (1, "kvm_sev_hypercall3", 2),
        (2, "hypercall", 1),
        (1, "notify_pages", 1),
        (1, "write_migration_control", 1),
        (2, "MSR access", 1),
    ]


def test_depth_bounds_the_tree(tmp_path: Path, capsys: Captured) -> None:
    (op,) = show(tmp_path, capsys, "set_memory_decrypted D[3] pages=2", "--depth", "1")
    assert names(op["calls"]) == [(0, "set_memory_decrypted", 1)]


def test_the_first_instructions_with_symbol_and_offset(tmp_path: Path, capsys: Captured) -> None:
    ops = "set_memory_encrypted D[3] pages=1\nhypercall nr=12 a0=0x1000 a1=1 mode=compat32"
    first, second = show(tmp_path, capsys, ops, "-n", "3")
    assert [(line["where"], line["text"]) for line in first["code"]] == [
        ("set_memory_encrypted", "mov edx, 1"),
        ("set_memory_encrypted+0x5", f"jmp {first['code'][2]['address']:#x}"),
        ("set_memory_decrypted+0x2", "xor eax, eax"),
    ]
    assert second["code"][0]["text"] == "vmmcall"
    assert first["instructions"] > 100


def test_showing_does_not_change_the_run(tmp_path: Path, capsys: Captured) -> None:
    ops = (
        "init_platform\nfail_split after=0\nset_memory_decrypted D[1023] pages=2\ndma_alloc slot=0"
    )
    shown = show(tmp_path, capsys, ops)
    assert main(["run", "--json", str(tmp_path / "a.prog")]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert [op["violations"] for op in shown] == [[], [], [], []]
    assert shown[2]["value"] == -12
    exits = [step for op in shown for step in op["steps"] if step.startswith("KVM_HC")]
    assert exits[:3] == [
        "KVM_HC_MAP_GPA_RANGE gpa=0x0 pages=160 private,4K -> 0",
        "KVM_HC_MAP_GPA_RANGE gpa=0x100000 pages=16128 private,4K -> 0",
        "KVM_HC_MAP_GPA_RANGE gpa=0x200000 pages=512 shared,4K -> 0",
    ]
    assert ran["hypercalls"][2]["args"][:3] == [0x200000, 512, 0]


def test_a_loop_is_folded_and_ends(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "loop.prog"
    ops = "unmap D[3]\nset_memory_decrypted D[3] pages=1\n"
    path.write_text(f"guestemu-program 1\nbudget 3000\n---\n{ops}")
    assert main(["show", str(path)]) == 1
    text = capsys.readouterr().out
    assert "did not return: no-progress" in text
    assert "lookup_address (" in text
    assert len(text.splitlines()) < 80


def test_text_marks_the_sites(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a.prog"
    path.write_text("guestemu-program 1\n---\nset_memory_decrypted D[3] pages=1\n")
    assert main(["show", "-n", "2", str(path)]) == 0
    text = capsys.readouterr().out
    assert "the kernel's set_memory_decrypted(" in text
    assert "* page-table store" in text
    assert "* hypercall" in text
    assert "set_memory_decrypted               xor edx, edx" in text


def test_bad_input_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert main(["show", str(tmp_path / "none.prog")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_one_host_is_shown(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a.prog"
    path.write_text("guestemu-program 1\n---\nread D[0]\n")
    assert main(["show", "--host", "qemu-v4,qemu-10.2", str(path)]) == 2
    assert "one host" in capsys.readouterr().err
