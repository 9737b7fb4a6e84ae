# SPDX-License-Identifier: GPL-2.0-or-later
import json
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.conformance.recordings.reader import read_recording
from guestemu.conformance.recordings.recording import Answer, HypercallEvent, StepOp

DATA = Path(__file__).parent.parent / "data" / "kvm-oracle" / "linux-6.1.jsonl"


@pytest.fixture
def lines():
    with DATA.open() as source:
        return [next(source).rstrip("\n") for _ in range(60)]


def write(tmp_path, lines):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_reads_kernel_steps_and_events():
    recording = read_recording(DATA)
    assert recording.meta.kernel == "6.1.0-56-cloud-amd64"
    assert recording.lines[0] == 2
    exits = [step for step in recording.steps if step.events]
    first = exits[0]
    assert first.op is StepOp.VMMCALL
    assert isinstance(first.events[0], HypercallEvent)
    assert first.events[0].args[3] == 0xA5A5A5A5A5A5A5A5
    assert {step.inputs.answer for step in exits} >= {Answer.WRITE_RET, Answer.SKIP_RIP}


def test_time_is_not_behaviour(lines, tmp_path):
    with_time = [*lines[:1], lines[1].replace('"other_regs_changed":""', '"us":7')]
    step = read_recording(write(tmp_path, with_time)).steps[0]
    assert step.out.us == 7
    assert step.expected.us is None


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (5, lambda line: line[: len(line) // 2], "not a recorded step"),
        (3, lambda line: "ORACLE garbage", "not a recorded step"),
        (4, lambda line: line.replace('"ret":"0x0"', '"ret":0'), "hexadecimal"),
        (4, lambda line: line.replace('"0x100000"', '"0x10000000000000000"'), "64 bits"),
        (6, lambda line: line.replace('"vmmcall"', '"hlt"'), "hlt"),
        (7, lambda line: line.replace('"grp"', '"group"'), "group"),
    ],
)
def test_bad_line_is_named(lines, tmp_path, number, change, message):
    lines[number - 1] = change(lines[number - 1])
    with pytest.raises(InputError, match=message) as caught:
        read_recording(write(tmp_path, lines))
    assert f"results.jsonl:{number}:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_field_is_refused_not_ignored(lines, tmp_path):
    step = json.loads(lines[1])
    step["out"]["rflags"] = "0x2"
    with pytest.raises(InputError, match="rflags"):
        read_recording(write(tmp_path, [lines[0], json.dumps(step)]))


def test_step_without_meta_line(lines, tmp_path):
    with pytest.raises(InputError, match=r":1: a step before the meta line"):
        read_recording(write(tmp_path, lines[1:3]))


def test_steps_of_a_case_out_of_order(lines, tmp_path):
    with pytest.raises(InputError, match=r":3: case 3: step 0 after step 0"):
        read_recording(write(tmp_path, [lines[0], lines[1], lines[1]]))


def test_case_with_two_configurations(lines, tmp_path):
    other = lines[1].replace('"step":0', '"step":1').replace('"irqchip":0', '"irqchip":1')
    with pytest.raises(InputError, match="another cfg"):
        read_recording(write(tmp_path, [*lines[:2], other]))


def test_binary_empty_and_missing_files(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"bad.jsonl:1:"):
        read_recording(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="no meta line"):
        read_recording(path)
    with pytest.raises(InputError, match="No such file"):
        read_recording(tmp_path / "none.jsonl")


def test_two_runs_in_one_file(lines, tmp_path):
    with pytest.raises(InputError, match=r":61: a second run starts here"):
        read_recording(write(tmp_path, [*lines, lines[0]]))


def test_a_recording_says_its_format(lines, tmp_path):
    first = json.loads(lines[0])
    assert read_recording(write(tmp_path, [json.dumps({**first, "format": 1}), *lines[1:]])).steps
    with pytest.raises(InputError, match=r":1: format 2, this guestemu reads 1"):
        read_recording(write(tmp_path, [json.dumps({**first, "format": 2}), *lines[1:]]))


def test_steps_out_of_order_with_other_cases_between(lines, tmp_path):
    with pytest.raises(InputError, match=r":4: case 3: step 0 after step 0"):
        read_recording(write(tmp_path, [lines[0], lines[1], lines[2], lines[1]]))


def test_case_that_could_not_be_recorded(lines, tmp_path):
    failed = '{"id":9,"grp":"A","error":"mk_vm -12"}'
    recording = read_recording(write(tmp_path, [*lines[:2], failed]))
    assert [(case.id, case.error) for case in recording.failed] == [(9, "mk_vm -12")]
    assert len(recording.steps) == 1


def test_line_nested_too_deep(lines, tmp_path):
    with pytest.raises(InputError, match=r":2: not a recorded step"):
        read_recording(write(tmp_path, [lines[0], '{"a":' + "[" * 100_000]))
