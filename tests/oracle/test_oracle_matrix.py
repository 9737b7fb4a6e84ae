# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix and the direct model against recordings of real kernels."""

from pathlib import Path

import pytest

from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.conformance.recordings.reader import read_recording
from guestemu.conformance.recordings.recording import Hex, Inputs, StepOp
from guestemu.oracle import wire
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import Act, config, matrix, msr
from guestemu.oracle.recorder import CaseResult, run_cases, write_recording

DATA = Path(__file__).parent.parent / "data" / "kvm-oracle"


@pytest.mark.parametrize("name", ["linux-6.1.jsonl", "linux-6.12.jsonl"])
def test_the_matrix_has_the_cases_of_the_recordings(name):
    cases = list(matrix())
    assert (len(cases), sum(len(case.acts) for case in cases)) == (1248, 2932)
    for step in read_recording(DATA / name).steps:
        case = cases[step.id - 1]
        act = case.acts[step.step]
        assert (case.group, case.cfg, act.op, act.inputs) == (
            *(step.grp, step.cfg, step.op, step.inputs),
        )
        if not step.op.is_ioctl:
            assert (act.mode, act.cpl) == (step.mode, step.cpl)


@pytest.mark.parametrize("name", ["linux-6.1.jsonl", "linux-6.12.jsonl"])
def test_the_model_without_a_cpu_does_every_recorded_step(name):
    recording = read_recording(DATA / name)
    kernel = choose_kernel(recording.meta.kernel, name).kernel
    cases = list(matrix())
    vms = {}
    for step in recording.steps:
        vm = vms.get(step.id)
        if vm is None:
            vm = vms[step.id] = DirectVm(step.cfg, kernel)
        act = cases[step.id - 1].acts[step.step]
        assert (vm.do(act), vm.rc) == ((step.events, step.expected), step.rc)


def test_a_recording_of_the_machine_is_read_back_as_it_was(fake, kernel, tmp_path):
    fake()
    cases = [case for case in matrix() if case.group[0] in "EIK"][:120]
    with LiveKvm(kernel) as kvm:
        results = list(run_cases(kvm, cases))
        write_recording(tmp_path / "all.jsonl.gz", kvm.machine, results)
    recording = read_recording(tmp_path / "all.jsonl.gz")
    assert recording.meta.kernel == "6.1.0-99-fake"
    assert recording.steps == tuple(step for result in results for step in result.steps)
    assert {len(result.steps) for result in results} > {1, 3}
    assert sum(step.op is StepOp.HOST_GET_MSR for step in recording.steps) > 10


def test_header_and_records_have_the_sizes_of_wire_h():
    text = (Path(wire.__file__).parent / "harness" / "wire.h").read_text()
    for name in ("CONFIGS_AT", "REQUESTS_AT", "REPLIES_AT", "CHANNEL_BYTES"):
        line = next(line for line in text.splitlines() if line.startswith(f"#define {name} "))
        assert int(line.split()[2].rstrip("ul"), 16) == getattr(wire, name)
    sizes = (wire.HEADER.size, wire.CONFIG.size, wire.REQUEST.size, wire.REPLY_BYTES)
    assert sizes == (384, 32, 64, 296)


def test_a_failed_case_is_kept(tmp_path, fake, kernel):
    fake()
    case = next(iter(matrix()))
    with LiveKvm(kernel) as kvm:
        write_recording(tmp_path / "one.jsonl", kvm.machine, [CaseResult(1, case, (), "no VM")])
    assert read_recording(tmp_path / "one.jsonl").failed[0].error == "no VM"


@pytest.mark.parametrize(
    ("flags", "index", "value", "irqchip"),
    [(2, 0x4B564D04, 0x200101, 0), (2, 0x4B564D02, 0x200049, 1)],
)
def test_kvm_refuses_an_address_in_a_slot_that_it_cannot_write(flags, index, value, irqchip):
    """PV_EOI_EN and ASYNC_PF_EN: kvm_gfn_to_hva_cache_init() wants a writable slot (6.12.118)."""
    cfg = config(features=1 << 14, irqchip=irqchip)
    for slot_flags, outcome in ((flags, "exception"), (0, "done")):
        vm = DirectVm(cfg, choose_kernel("6.12.118", "6.12").kernel)
        inputs = Inputs(rax=Hex(0x200000), rbx=Hex(0x1000), rcx=Hex(2), rdx=Hex(slot_flags))
        assert vm.do(Act(op=StepOp.SET_SLOT, inputs=inputs))[1].ioctl == 0
        assert vm.do(msr(StepOp.WRMSR, index, value))[1].outcome == outcome
