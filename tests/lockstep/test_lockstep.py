# SPDX-License-Identifier: GPL-2.0-or-later
"""One program on several hosts: what differs in meaning, and where the difference comes from."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.targets import LOCKSTEP_HOSTS, find_target
from guestemu.cli.main import main
from guestemu.host.permission import named_by_user
from guestemu.host.registry import hosts
from guestemu.program.generate import generate_ops
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Expectation, Header, Program
from guestemu.program.text import format_text, load_program, parse_text
from guestemu.replay.lockstep.check import LockstepCheck
from guestemu.replay.lockstep.known import KNOWN
from guestemu.replay.lockstep.run import HostChoice, choices_of, run_lockstep
from guestemu.runner.testbed import build_testbed

MERGED = "map-gpa-range"
ON = "wrmsr msr=0x4b564d08 value=1\n"


def chosen(name):
    if isinstance(name, tuple):
        return HostChoice(*name)
    spec, plugin = named_by_user(name)
    return HostChoice(spec, plugin=plugin)


def diverge(ops, *names, guest="snippet:2020"):
    """(op, other host, aspect, key) of every divergence from the first host."""
    program = parse_text(f"guestemu-program 1\nguest {guest}\n---\n{ops}\n", "t")
    choices = [chosen(name) for name in names]
    found = run_lockstep(program, choices).divergences
    return [(d.op, d.hosts[1], d.aspect, d.known) for d in found]


@pytest.mark.parametrize(
    ("ops", "host", "wanted"),
    [
        (
            "hypercall a0=0x3fff000 a1=2 a2=0",
            "bitmap-v8",
            {(0, "status", "silent-range")},
        ),
        (
            "hypercall a0=0x5001 a1=1 a2=0",
            "bitmap-v8",
            {(0, "answer", "low-bits"), (0, "status", "low-bits")},
        ),
        ("hypercall a0=0x5000 a1=0 a2=0", "bitmap-v8", {(0, "answer", "no-pages")}),
        (
            "hypercall a0=0x5000 a1=1 a2=0\nhypercall a0=0x5000 a1=2 a2=0x10",
            "shared-list-v10",
            {(0, "answer", "list-result"), (1, "status", "kvm-list")},
        ),
        (
            "hypercall a0=0x800000 a1=512 a2=1",
            "qemu-v4",
            {(0, "status", "attributes-word")},
        ),
        (
            "hypercall a0=0x800000 a1=512 a2=1",
            "bitmap-v8",
            {(0, "status", "enc-argument")},
        ),
        (
            "hypercall a0=0x1000 a1=1\nhypercall a0=0 a1=2\nhypercall a0=0 a1=2 a2=0x10",
            "qemu-v4",
            {(2, "status", "qemu-list")},
        ),
        (ON + "wrmsr msr=0x4b564d08 value=0", "qemu-v4", {(1, "ready", "blocker")}),
        (ON, "bitmap-v3", {(0, "end", "no-msr"), (0, "ready", "no-msr")}),
        (
            "hypercall a0=0x5000 a1=1 a2=0",
            "bitmap-v6",
            {(0, "answer", "gate"), (0, "status", "gate")},
        ),
        (
            "hypercall a0=0x5000 a1=1 a2=0",
            "bitmap-v3",
            {(0, "answer", "number"), (0, "status", "number")},
        ),
        ("hypercall a0=0x8000000 a1=1 a2=0x10", "qemu-10.2", {(0, "end", "vm-stopped")}),
        ("hypercall a0=0x5000 a1=1 a2=1", "libkrun", {(0, "status", "attributes-word")}),
        (
            "hypercall a0=0x5000 a1=0x10000000000001 a2=0",
            "cloud-hypervisor",
            {(0, "status", "vmm-size")},
        ),
        ("hypercall a0=0x5000 a1=0x10000000000000 a2=0", "dragonball", {(0, "end", "vmm-size")}),
        ("hypercall a0=0xfffffffffffff000 a1=1 a2=0", "dragonball", {(0, "end", "vmm-top")}),
        ("hypercall a0=0x3fff000 a1=2 a2=0", "qemu-11", {(0, "end", "vmm-place")}),
        ("hypercall a0=0x4000000 a1=1 a2=0", "libkrun", {(0, "end", "vmm-place")}),
        (
            "hypercall a0=0x5000 a1=1 a2=0x20",
            "openvmm",
            {(0, "answer", "vmm-bits"), (0, "status", "vmm-bits")},
        ),
        (ON, "openvmm", {(0, "end", "blocked"), (0, "ready", "blocked")}),
        (
            "hypercall nr=0x10000000c a0=0x5000 a1=1 mode=compat32",
            "map-gpa-range:6.12",
            {(0, "status", "lost-exit")},
        ),
        (
            "answer value=5\nhypercall a0=0x5000 a1=1\nhypercall a0=0x6000 a1=1",
            "qemu-v4",
            {(2, "answer", "stale-ret")},
        ),
    ],
)
def test_known_difference(ops, host, wanted):
    found = diverge(ops, MERGED, host)
    assert {(op, aspect, key) for op, _, aspect, key in found} == wanted


VMMS = "qemu-11,cloud-hypervisor,openvmm,libkrun,dragonball"
CORPORA = Path(__file__).parents[2] / "corpora"


@pytest.mark.soak
@pytest.mark.parametrize("directory", ["snp", "tdx"])
def test_five_vmms_differ_in_known_ways_on_the_guests_that_they_serve(directory):
    found = set()
    for path in sorted((CORPORA / directory).glob("*.prog")):
        program = load_program(path)
        header = msgspec.structs.replace(program.header, host="qemu-11", switches=())
        program = msgspec.structs.replace(program, header=header)
        for one in run_lockstep(program, choices_of(VMMS, header)).divergences:
            assert one.is_explained, (path.name, one)
            found.add((one.hosts[1], one.aspect, one.known))
    wanted = {("libkrun", "status", "attributes-word")} if directory == "snp" else set()
    assert found == wanted


def test_equal_hosts_do_not_diverge():
    ops = ON + "set_memory_decrypted D[3] pages=2\nset_memory_encrypted D[3] pages=1"
    repaired = [(entry.name, entry.switches) for entry in hosts()]
    merged = [choice for choice in repaired if choice[0] in {MERGED, "qemu-v4"}]
    assert diverge(ops, *merged, guest="snippet:6.1") == []
    in_kernel = [(name, s) for name, s in repaired if name.startswith(("bitmap-v8", "shared"))]
    assert len(in_kernel) == 2
    assert diverge(ops, *in_kernel) == []


def test_a_divergence_is_told_once_and_meeting_again_is_none():
    ops = "\n".join(
        [
            "hypercall a0=0x800000 a1=1 a2=1",
            "hypercall a0=0x900000 a1=1 a2=0",
            "hypercall a0=0x800000 a1=1 a2=0x10",
        ]
    )
    assert [(op, aspect) for op, _, aspect, _ in diverge(ops, MERGED, "qemu-v4")] == [(0, "status")]


def test_nothing_is_compared_behind_a_stopped_vm():
    ops = "hypercall a0=0x8000000 a1=1 a2=0x10\nhypercall a0=0x5000 a1=1 a2=0"
    assert [op for op, *_ in diverge(ops, MERGED, "qemu-10.2")] == [0]


def test_poisoned_end_frame():
    ops = ON + "host_poison_page gfn=0x404\nhypercall a0=0x402000 a1=2"
    found = diverge(ops, MERGED, "bitmap-v8")
    assert {(op, aspect, key) for op, _, aspect, key in found} == {
        (2, "answer", "poisoned"),
        (2, "status", "poisoned"),
    }


def test_a_users_host_is_never_explained(tmp_path):
    source = """
        from guestemu.host.kvm.bitmap_v8 import BitmapV8Host

        class Mine(BitmapV8Host):
            name = "mine"
    """
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(source))
    found = diverge("hypercall a0=0x5001 a1=1 a2=0", MERGED, f"{path}:Mine")
    assert {(aspect, key) for _, _, aspect, key in found} == {("answer", ""), ("status", "")}
    found = diverge("hypercall a0=0x800000 a1=512 a2=1", MERGED, "qemu-v4", f"{path}:Mine")
    assert [key for *_, key in found] == ["attributes-word", ""]
    found = diverge("hypercall a0=0x800000 a1=512 a2=1", "qemu-v4", f"{path}:Mine")
    assert found == [], "both take any non-zero word for private"


def test_every_row_cites_a_fact():
    assert len({known.key for known in KNOWN}) == len(KNOWN)
    assert all(known.fact and known.sentence and known.aspects for known in KNOWN)


@pytest.mark.parametrize(
    ("specs", "message"),
    [("a,", "two hosts or more"), (",", "two hosts"), ("a,b,a", "a is named twice")],
)
def test_bad_lists(specs, message):
    with pytest.raises(InputError, match=message):
        choices_of(specs, Header())


def test_repairs_of_the_header_belong_to_its_host():
    header = Header(host="bitmap-v8", switches=("low-bits",))
    assert [choice.label for choice in choices_of("map-gpa-range,bitmap-v8", header)] == [
        "map-gpa-range",
        "bitmap-v8+low-bits",
    ]


def test_check_reports_only_what_is_unexplained():
    header = Header(guest="snippet:6.1")
    testbed = build_testbed(header)
    testbed.checks = (LockstepCheck(header, [HostChoice("qemu-v4"), HostChoice("bitmap-v8")]),)
    text = "guestemu-program 1\n---\nhypercall a0=0x5001 a1=1\nhypercall a0=0x6000 a1=1\n"
    ops = parse_text(text, "t").ops
    assert testbed.run(ops).violations == ()
    answer = testbed.host.hypercall
    testbed.recorder._answer = lambda call: answer(call) and 7
    assert {v.check for v in testbed.run(ops).violations} == {"lockstep-answer"}


def test_hosts_hear_the_exits_that_guests_of_their_own_would_make():
    target = find_target("lockstep")
    others = {OpKind.DMA_ALLOC, OpKind.WRITE, OpKind.VM_RESET}
    kinds = target.kinds | target.fault_kinds | others
    header = msgspec.structs.replace(target.header, beside=(), memory=64)
    choices = [HostChoice(name) for name in (*LOCKSTEP_HOSTS, "qemu-10.2")]
    checks = [LockstepCheck(header, choices) for _ in range(2)]
    repeating, running = ([*check._followers] for check in checks)
    for follower in running:
        follower.may_repeat = False
    testbed = build_testbed(header)
    testbed.checks = tuple(checks)
    rng = random.Random(1)
    left_out = caught_up = 0
    for _ in range(60):
        ops = target.limit(generate_ops(rng, header, kinds, 4), False)
        testbed.run(ops)
        for one, other in zip(repeating, running, strict=True):
            assert one._watcher.sides == other._watcher.sides
            left_out += one._left_out is not None
            caught_up += one._left_out is None
    assert left_out
    assert caught_up
    for follower in repeating:
        follower._testbed.close()
    for follower in running:
        follower._testbed.close()
    testbed.close()


def run_cli(capsys, *arguments):
    status = main(["run", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def write(tmp_path, ops):
    path = tmp_path / "p.prog"
    path.write_text(f"guestemu-program 1\n---\n{ops}\n")
    return path


def test_command_json(tmp_path, capsys):
    path = write(tmp_path, "hypercall a0=0x800000 a1=512 a2=1")
    status, out, _ = run_cli(capsys, path, "--host", "map-gpa-range,qemu-v4", "--json")
    assert status == 1
    found = json.loads(out)
    assert [run["host"] for run in found["runs"]] == ["map-gpa-range", "qemu-v4"]
    assert found["runs"][0]["outcome"] == "ok"
    assert found["outcome"] == "diverged"
    (divergence,) = found["divergences"]
    assert divergence["explained"] is True
    assert (divergence["op"], divergence["aspect"], divergence["fact"]) == (
        0,
        "status",
        "D19, M53",
    )


def test_command_without_divergence(tmp_path, capsys):
    path = write(tmp_path, "hypercall a0=0x800000 a1=512 a2=0")
    status, out, _ = run_cli(capsys, path, "--host", "map-gpa-range:6.1,map-gpa-range:7.2")
    assert status == 0
    assert "0 divergences" in out


def test_command_refuses_a_trace_of_several_runs(tmp_path, capsys):
    path = write(tmp_path, "hypercall")
    trace = tmp_path / "t.jsonl"
    status, _, err = run_cli(capsys, path, "--host", "map-gpa-range,qemu-v4", "--trace", trace)
    assert status == 2
    assert "a trace is of one run" in err


WRONG = """
from guestemu.host.base import GuestFault, Host
from bitarray import bitarray


class Wrong(Host):
    summary = "answers 7"

    def reset(self, frames):
        self.bits = bitarray(frames, endian="little")
        self.bits.setall(True)

    def hypercall(self, call):
        return ANSWER

    def rdmsr(self, index, vcpu):
        raise GuestFault(13, 0)

    def wrmsr(self, index, value, vcpu):
        raise GuestFault(13, 0)

    def private_map(self):
        return self.bits

    @property
    def migration_ready(self):
        return False
"""


@pytest.mark.parametrize(("answer", "status"), [(7, 1), (-1000 & (1 << 64) - 1, 0)])
def test_a_finding_names_the_hosts_beside_its_own_and_replays(
    answer: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = tmp_path / "wrong.py"
    host.write_text(WRONG.replace("ANSWER", str(answer)))
    target = find_target("lockstep")
    header = msgspec.structs.replace(target.header, host="wrong.py:Wrong", plugin=str(host))
    executor = Executor(target, header, target.kinds, Feedback())
    assert executor.header.beside == ("map-gpa-range",)
    op = Op(OpKind.HYPERCALL, (13, 0, 0, 0, 0))
    found = tuple(
        Expectation("violation", violation.check, violation.op) for violation in executor.run((op,))
    )
    assert [one.value for one in found] == ["lockstep-answer"] * status
    program = tmp_path / "finding.prog"
    program.write_text(format_text(Program(executor.header, (op,), found)))
    assert main(["replay", "--plugins", str(tmp_path), str(program)]) == 0
    assert main(["run", "--plugins", str(tmp_path), str(program)]) == status
    assert f"{status} of them unexplained" in capsys.readouterr().out
