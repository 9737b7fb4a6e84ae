# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel call --tree` on real kernels."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main
from guestemu.guest.linux.load import LinuxLoader, linux_config
from guestemu.kernel.call import call_function
from guestemu.kernel.calltree import CallTracer, TracedExits

LEVELS = 20


@pytest.fixture
def fresh(series, image_of):
    """A guest of its own: a traced one stays slow."""
    return LinuxLoader().guest(image_of(series), linux_config(128, 39, "sev"), 10_000_000)


def paths(tree):
    """name: (names of the callers, times) of every node; the last node of a name counts."""
    found, stack = {}, []
    for line in tree:
        del stack[line.depth :]
        found[line.name] = (tuple(stack), line.times)
        stack.append(line.name)
    return found


def test_a_conversion_from_call_to_hypercall(fresh):
    report = call_function(fresh, "set_memory_decrypted", ["page:2", "3"], 0, LEVELS)
    found = paths(report.tree)
    callers, times = found["hypercall 12"]
    assert times == 3
    assert callers[:3] == (
        "set_memory_decrypted",
        "__set_memory_enc_pgtable",
        "amd_enc_status_change_finish",
    )
    assert callers[-1] == "kvm_sev_hc_page_enc_status"
    assert "__change_page_attr_set_clr" in found["native_set_pte"][0]
    # a 2 MiB leaf is split (512 entries), three of them change
    assert found["native_set_pte"][1] >= 515


def test_the_tree_accounts_for_every_instruction(fresh):
    plain = call_function(fresh, "kvm_guest_cpu_offline", ["0"])
    report = call_function(fresh, "kvm_guest_cpu_offline", ["0"], 0, LEVELS)
    assert report.instructions == plain.instructions
    assert [line.total for line in report.tree if line.depth == 0] == [plain.instructions]
    assert sum(line.own for line in report.tree) == plain.instructions
    callers, times = paths(report.tree)["WRMSR 0x4b564d08 = 0x0"]
    assert times == 1
    assert callers[0] == "kvm_guest_cpu_offline"


@pytest.mark.parametrize("series", ["6.1", pytest.param("6.12", marks=pytest.mark.soak)])
def test_calls_are_closed_also_behind_an_exception(fresh):
    tracer = CallTracer(fresh)
    fresh.machine.hooks.handler = TracedExits(0, tracer)
    fresh.reset()
    page = int(fresh.gva(0, 0))
    tracer.begin()
    assert fresh.call("set_memory_decrypted", page + 5, 1).warnings
    assert tracer.end() == 0
    found = paths(tracer.lines(LEVELS))
    assert found["asm_exc_invalid_op"][0] == ("set_memory_decrypted", "__set_memory_enc_pgtable")
    assert found["hypercall 12"][0][:2] == ("set_memory_decrypted", "__set_memory_enc_pgtable")


def test_depth_cuts_functions_and_keeps_exits(fresh):
    report = call_function(fresh, "set_memory_decrypted", ["page:0", "1"], 0, 2)
    assert {line.depth for line in report.tree if not line.is_exit} == {0, 1}
    assert [line.name for line in report.tree if line.is_exit] == ["hypercall 12"]


@pytest.mark.parametrize("series", [pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def test_the_command_prints_the_tree_and_the_console(own_loader, series, image_of, capsys):
    words = ["kernel", "call", "--image", str(image_of(series)), "set_memory_decrypted"]
    assert main([*words, "page:0", "1", "--tree", "--depth", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("* hypercall 12") for line in lines)
    assert main([*words, "page:0+5", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("misaligned address" in line and line.startswith("  | ") for line in lines)
    assert main([*words, "page:0", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tree"] == []
