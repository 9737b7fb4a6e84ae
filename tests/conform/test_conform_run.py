# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded steps executed by guest instructions: all agree, and whatever is changed is reported."""

import copy
import json

import pytest
from conform_recordings import CALL, DATA, line, write

from guestemu.conformance.recordings import model, testvm
from guestemu.conformance.recordings.kernel_choice import choose_kernel, without_defects
from guestemu.conformance.recordings.reader import read_recording
from guestemu.conformance.recordings.recording import StepOp
from guestemu.conformance.recordings.run import Conformance, StepTally
from guestemu.host.kvm.base_calls import RAX_EINVAL, RAX_ENOSYS
from guestemu.host.kvm.merged import MergedKvm
from guestemu.host.kvm.msr_access import MsrAccess

RECORDED = ["linux-6.1", "linux-6.12"]


def replay(recording, kernel=None):
    conformance = Conformance(kernel or choose_kernel(recording.meta.kernel, "test").kernel)
    tally = StepTally()
    conformance.run(recording, tally)
    conformance.close()
    return tally


@pytest.fixture(scope="module")
def recordings():
    return {name: read_recording(DATA / f"{name}.jsonl") for name in RECORDED}


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_step_agrees_on_the_machine(recordings, name):
    tally = replay(recordings[name])
    assert tally.disagree == []
    assert (tally.steps, tally.agree, tally.unsupported) == (1549, 1549, [])


def leaves(value, path):
    """Paths of every number and text inside the JSON of a line."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def flipped(value):
    if isinstance(value, int):
        return value + 1
    if value.startswith("0x"):
        return hex(int(value, 16) ^ 1)
    return value + "x"


def name_of(path):
    text = str(path[0])
    for part in path[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text


def distinct_lines():
    """One recorded line of each shape: op, mode, CPL and what its events and outcome hold."""
    shapes = {}
    for text in (DATA / "linux-6.1.jsonl").read_text().splitlines()[1:]:
        step = json.loads(text)
        if step["step"]:
            continue
        exits = tuple(event["exit"] for event in step["events"])
        shape = (step["op"], step.get("mode"), step.get("cpl"), exits, tuple(step["out"]))
        shapes.setdefault(shape, step)
    return list(shapes.values())


def test_every_flipped_field_is_reported(tmp_path):
    """Each of the fields that the agreement rule names, one at a time, in steps of every shape."""
    lines, fields = [], {}
    for step in distinct_lines():
        for path in [p for key in ("rc", "events", "out") for p in leaves(step[key], (key,))]:
            if path[-1] == "exit" and path[0] == "events":
                continue
            changed = copy.deepcopy(step)
            inner = changed
            for part in path[:-1]:
                inner = inner[part]
            if path == ("out", "us"):
                continue
            inner[path[-1]] = flipped(inner[path[-1]])
            changed["id"] = len(lines)
            fields[len(lines)] = name_of(path)
            lines.append(changed)
    tally = replay(read_recording(write(tmp_path / "flipped.jsonl", *lines)))
    found = {item.id: item.field for item in tally.disagree}
    assert len(tally.disagree) == len(lines) > 400
    assert found == fields
    assert tally.agree == 0


def test_a_lost_and_an_invented_exit_are_reported(recordings, tmp_path):
    texts = (DATA / "linux-6.1.jsonl").read_text().splitlines()[1:]
    step = next(s for s in map(json.loads, texts) if s["events"])
    more = copy.deepcopy(step) | {"id": 2, "events": [*step["events"], *step["events"]]}
    lost = copy.deepcopy(step) | {"id": 3, "events": []}
    tally = replay(read_recording(write(tmp_path / "x.jsonl", step, more, lost)))
    assert [(d.id, d.field, d.expected, d.found) for d in tally.disagree] == [
        (2, "events[1]", "HYPERCALL", None),
        (3, "events[0]", None, "HYPERCALL"),
    ]


class ArgumentsBeforeCapability(MergedKvm):
    def hypercall(self, call):
        if call.nr == 12 and not call.cpl and call.a0 & 0xFFF:
            return RAX_EINVAL
        return super().hypercall(call)


class NumberBeforePrivilege(MergedKvm):
    def hypercall(self, call):
        return RAX_ENOSYS if call.nr == 100 else super().hypercall(call)


@pytest.mark.parametrize("changed", [ArgumentsBeforeCapability, NumberBeforePrivilege])
def test_model_with_another_order_of_checks_disagrees(recordings, monkeypatch, changed):
    monkeypatch.setattr(model, "MergedKvm", changed)
    tally = replay(recordings["linux-6.1"])
    assert tally.disagree
    assert {item.field.split(".")[0] for item in tally.disagree} == {"out"}


def test_model_that_asks_user_space_before_the_filter_disagrees(recordings, monkeypatch):
    monkeypatch.setattr(MsrAccess, "_is_allowed", lambda *_: True)
    fields = {item.field for item in replay(recordings["linux-6.1"]).disagree}
    assert "events[0].reason" in fields


def test_the_guests_own_instruction_is_what_runs(recordings, monkeypatch):
    """With NOPs in place of VMMCALL, exactly the VMMCALL steps disagree."""
    nops = {**testvm.OPCODES, StepOp.VMMCALL: b"\x90\x90\x90"}
    monkeypatch.setattr(testvm, "OPCODES", nops)
    recording = recordings["linux-6.1"]
    tally = replay(recording)
    calls = {(s.id, s.step) for s in recording.steps if s.op is StepOp.VMMCALL}
    assert {(d.id, d.step) for d in tally.disagree} == calls


@pytest.mark.parametrize(
    ("register", "reported"),
    [("rcx", "rcx "), ("rdi", "rdi "), ("r8", "r8/rbp "), ("rbp", "r8/rbp "), ("r9", "")],
)
def test_model_that_changes_another_register_disagrees(tmp_path, monkeypatch, register, reported):
    class Clobbers(MergedKvm):
        def hypercall(self, call):
            call.vcpu.write_register(register, 1)
            return super().hypercall(call)

    monkeypatch.setattr(model, "MergedKvm", Clobbers)
    assert outcome_of(tmp_path, line("vmmcall", CALL))["other_regs_changed"] == reported


def test_guest_that_loops_times_out(tmp_path, monkeypatch):
    """As a VMCALL does that is executed again for ever."""
    jump_to_self = {**testvm.OPCODES, StepOp.VMMCALL: b"\xeb\xfe\x90"}
    monkeypatch.setattr(testvm, "OPCODES", jump_to_self)
    out = outcome_of(tmp_path, line("vmmcall", CALL))
    assert (out["outcome"], out["exit_reason"], out["rip_off"]) == ("timeout", -1, 0)
    assert (out["info"], out["hw"], out["rax"]) == (0, "0x0", "0xc")


def test_6_12_loses_the_exit_of_a_32_bit_call_with_junk_above(recordings):
    """K3-i: the recorded kernel answers 0 and user space never hears of the conversion."""
    recording = recordings["linux-6.12"]
    repaired = without_defects(choose_kernel("6.12", "test")).kernel
    tally = replay(recording, repaired)
    assert {(d.field, d.expected, d.found) for d in tally.disagree} == {
        ("events[0]", None, "HYPERCALL")
    }
    cases = {d.id for d in tally.disagree}
    lost = [s for s in recording.steps if s.id in cases]
    assert {s.mode == "long64" for s in lost} == {False}
    assert all(s.inputs.rax & 0xFFFFFFFF == 12 and s.inputs.rax >> 32 for s in lost)
    assert {s.out.rax for s in lost} == {0}


def test_recording_of_one_kernel_disagrees_with_another(recordings):
    tally = replay(recordings["linux-6.12"], choose_kernel("6.1", "test").kernel)
    assert {"events[0]", "events[0].pad_u32"} <= {d.field for d in tally.disagree}


def outcome_of(tmp_path, *lines, kernel="6.1"):
    """The model's outcome of the last line, from what it reports against an empty outcome."""
    recording = read_recording(write(tmp_path / "one.jsonl", *lines))
    tally = replay(recording, choose_kernel(kernel, "test").kernel)
    last = [d for d in tally.disagree if (d.id, d.step) == (lines[-1]["id"], lines[-1]["step"])]
    return {d.field.removeprefix("out."): d.found for d in last}


MODES = [("long64", 0), ("long64", 1), ("long64", 3), ("compat32", 0), ("compat32", 2)]
MODES += [("prot32", 0), ("prot32", 3), ("real16", 0)]


@pytest.mark.parametrize(("mode", "cpl"), MODES)
@pytest.mark.parametrize("op", ["rdmsr", "wrmsr"])
def test_gp_frame_in_every_mode(tmp_path, op, mode, cpl):
    """Recorded for long64, compat32 and prot32; in real mode there is no error code."""
    inputs = {"msr": "0x4b564d08", "val": "0x1122334455667788"}
    out = outcome_of(tmp_path, line(op, inputs, mode=mode, cpl=cpl))
    assert out.pop("rax") == ("0x5a5a5a5a5a5a5a5a" if op == "rdmsr" else "0x55667788")
    assert out.pop("rdx") == ("0x7b7b7b7b7b7b7b7b" if op == "rdmsr" else "0x11223344")
    assert out == {
        "outcome": "exception",
        "other_regs_changed": "",
        "vector": 13,
        "errcode": -1 if mode == "real16" else 0,
        "fault_rip_off": 0,
    }


@pytest.mark.parametrize("mode", ["compat", "prot32", "real16"])
def test_vmcall_is_patched_outside_64_bit_code_too(tmp_path, mode):
    inputs = CALL | {"ret": "0x1234567890abcdef"}
    out = outcome_of(tmp_path, line("vmcall", inputs, mode=mode))
    assert out["code_patched_to"] == "0f01d9"
    assert (out["outcome"], out["rax"]) == ("done", "0x90abcdef")


def test_cleared_cs_l_truncates_the_answer(tmp_path):
    """The mode is looked at again when the exit completes (real-KVM measurement)."""
    inputs = CALL | {"ret": "0x1234567890abcdef", "answer": "clear_cs_l_before_resume"}
    again = line("vmmcall", CALL | {"ret": "0x1234567890abcdef"}, number=1)
    first = outcome_of(tmp_path, line("vmmcall", inputs))
    assert (first["outcome"], first["rax"]) == ("done", "0x90abcdef")
    assert outcome_of(tmp_path, line("vmmcall", inputs), again)["rax"] == "0x1234567890abcdef"


def test_halt_exits_only_without_an_in_kernel_irqchip(tmp_path):
    inputs = CALL | {"answer": "set_regs_rip_plus3", "ret": "0x5"}
    halted = outcome_of(tmp_path, line("vmmcall", inputs))
    assert (halted["outcome"], halted["exit_reason"], halted["rip_off"]) == ("other_exit", 5, 6)
    asleep = outcome_of(tmp_path, line("vmmcall", inputs, irqchip=1))
    assert (asleep["outcome"], asleep["exit_reason"], asleep["rip_off"]) == ("timeout", 3, 6)


def test_read_only_code_only_faults_under_paging(tmp_path):
    fault = outcome_of(tmp_path, line("vmcall", CALL, ro_code=1))
    assert (fault["vector"], fault["errcode"], fault["cr2"]) == (14, 3, "0x8000")
    assert outcome_of(tmp_path, line("vmcall", CALL, mode="prot32", ro_code=1))["outcome"] == "done"
    both = (line("vmcall", CALL, ro_code=1), line("vmcall", CALL, case=2))
    assert outcome_of(tmp_path, *both)["outcome"] == "done"


def test_7_2_refuses_long_mode_without_cpuid(tmp_path):
    out = outcome_of(tmp_path, line("vmmcall", CALL, cpuid="no_set_cpuid"), kernel="7.2")
    assert out == {"rc.cpuid": 1, "outcome": "set_sregs_failed", "rc": -22}


def test_steps_of_a_case_share_one_vm_even_when_others_lie_between(tmp_path):
    write_poll = line("wrmsr", {"msr": "0x4b564d05", "val": "0x0"})
    other = line("rdmsr", {"msr": "0x4b564d05"}, case=2)
    read_poll = line("rdmsr", {"msr": "0x4b564d05"}, number=1)
    assert outcome_of(tmp_path, write_poll, other)["rax"] == "0x1"
    assert outcome_of(tmp_path, write_poll, other, read_poll)["rax"] == "0x0"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (line("rdmsr", {"msr": "0x10"}), "MSR 0x10"),
        (line("host_get_msr", {"msr": "0xc0000080"}), "MSR 0xc0000080"),
        (line("vmmcall", CALL, mode="smm"), "mode 'smm'"),
        (line("vmmcall", CALL, mode="real16", cpl=3), "no CPL 3"),
        (line("vmmcall", CALL, cpl=4), "no CPL 4"),
        ({"id": 7, "grp": "A", "error": "mk_vm -12"}, "mk_vm -12"),
    ],
)
def test_what_cannot_be_compared_is_counted(tmp_path, step, reason):
    tally = replay(read_recording(write(tmp_path / "one.jsonl", step)))
    assert (tally.steps, tally.agree, tally.disagree) == (1, 0, [])
    assert reason in tally.unsupported[0].reason
