# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of memory slots: their text, what hosts get of them, what the checks make of holes."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.campaign.campaign import Options, header_of, target_of
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.cli.main import main
from guestemu.host.kvm.guest_memory import Slot
from guestemu.program.layout import parts_of, split_memory
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text, parse_text
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import slots_of

MIB = 1 << 20
LAYOUT = "slot@32M,hole@48M+1M,rom@50M+64K,plain@0x3c00000+1M"
HANDLER = f"{Path(__file__).parents[1]}/quality/defects/correct_handler.py:Handler"


def test_a_layout_is_slots_with_the_files_parts_packed():
    assert slots_of(Header(layout=LAYOUT)) == (
        Slot(0, 32 * MIB),
        Slot(32 * MIB, 16 * MIB, 32 * MIB),
        Slot(49 * MIB, MIB, 48 * MIB),
        Slot(50 * MIB, 0x10000, has_guest_memfd=False, is_read_only=True),
        Slot(50 * MIB + 0x10000, 10 * MIB - 0x10000, 49 * MIB),
        Slot(60 * MIB, MIB, has_guest_memfd=False),
        Slot(61 * MIB, 3 * MIB, 59 * MIB - 0x10000),
    )
    assert slots_of(Header()) == ()
    assert [part.kind for part in parts_of("mmio@0+4K", 1)] == ["mmio", "slot"]


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("hole@1M", "every other part has one"),
        ("slot@1M+1M", "a slot has no size"),
        ("hole@100+4K", "whole pages"),
        ("hole@64M+4K", "the end of memory"),
        ("hole@1M+2M,rom@2M+1M", "lies in the part before"),
        ("pit@1M+1M", "write slot@GPA"),
        ("hole@1Q+1M", "is not a number"),
        ("hole@1M+0", "whole pages"),
        (",".join(["slot@0"] * 33), "at most 32"),
    ],
)
def test_a_wrong_layout_says_what_to_write(layout, says):
    with pytest.raises(ValueError, match=says):
        parts_of(layout, 64)
    text = format_text(Program(Header())).replace("\n---", f"\nlayout {layout}\n---")
    with pytest.raises(InputError, match=says):
        parse_text(text, "a.prog")


def test_a_header_keeps_its_layout_and_has_no_line_without_one():
    program = Program(Header(layout=LAYOUT))
    assert parse_text(format_text(program), "a.prog") == program
    assert "layout" not in format_text(Program(Header()))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("512", (512, "")),
        ("2G", (2048, "")),
        ("64M,hole@1M+4K", (64, "hole@1M+4K")),
        ("slot@1M", (None, "slot@1M")),
    ],
)
def test_the_option_takes_a_size_and_a_layout(text, meant):
    assert split_memory(text) == meant


def call(gpa: int, pages: int, private: bool = False) -> Op:
    return Op(OpKind.HYPERCALL, (12, gpa, pages, 16 * private, 0))


def test_ranges_that_meet_a_hole_may_be_refused_and_ram_may_not(tmp_path):
    (tmp_path / "refuses.py").write_text(
        "from guestemu.host.handler import VmmHandler\n"
        "class Refuses(VmmHandler):\n"
        "    def map_gpa_range(self, gpa, pages, attributes):\n"
        "        return -22\n"
    )
    for host, ops, wrong in (
        (HANDLER, (call(47 * MIB, 300), call(47 * MIB, 512), call(31 * MIB, 512)), ()),
        (HANDLER, (call(50 * MIB, 3), call(60 * MIB, 3), call(0, 1), call(0, 1, True)), ()),
        (f"{tmp_path}/refuses.py:Refuses", (call(48 * MIB, 1), call(47 * MIB, 257)), ()),
        (f"{tmp_path}/refuses.py:Refuses", (call(48 * MIB, 1), call(49 * MIB, 1)), (1,)),
    ):
        options = Options("hypercall", host=host, layout=LAYOUT)
        target = target_of(options)
        header = header_of(target, options)
        executor = Executor(target, header, target.kinds, Feedback())
        assert tuple(found.op for found in executor.run(ops)) == wrong
        assert {48 * MIB, 49 * MIB} <= set(executor.decoder.plans[0].palettes[1])


def test_a_users_exit_handler_gets_two_slots_and_a_hole_by_default():
    target = target_of(Options("hypercall", host=HANDLER))
    assert header_of(target, Options("hypercall", host=HANDLER)).layout == "slot@32M,hole@48M+1M"
    assert header_of(target, Options("hypercall", host=HANDLER, layout="")).layout == ""
    assert header_of(target, Options("hypercall")).layout == ""


def test_hosts_without_slots_ignore_a_layout(tmp_path):
    program = Program(Header(layout=LAYOUT), (call(47 * MIB, 512),))
    assert not run_program(program).outcome.violations


def test_run_takes_a_layout_and_refuses_a_wrong_one(tmp_path, capsys):
    path = tmp_path / "a.prog"
    path.write_text(format_text(Program(Header(), (call(47 * MIB, 512),))))
    assert main(["run", str(path), "--host", HANDLER, "--memory", "64M,hole@48M+1M"]) == 0
    assert main(["run", str(path), "--host", HANDLER, "--memory", "64"]) == 0
    assert main(["run", str(path), "--memory", "hole@48M"]) == 2
    assert "--memory: layout word hole@48M" in capsys.readouterr().err
