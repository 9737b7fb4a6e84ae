# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings that `guestemu oracle record` made of whole kernels, against the model."""

from pathlib import Path

import pytest

from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.conformance.recordings.reader import read_recording
from guestemu.oracle.conversions import memory_matrix
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.matrix import matrix

DATA = Path(__file__).parent.parent / "data" / "kvm-oracle"
RECORDINGS = sorted(DATA.glob("matrix-*.jsonl.gz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_the_model_does_every_step_of_the_matrix(path):
    recording = read_recording(path)
    assert (len(recording.steps), recording.failed) == (2932, ())
    kernel = choose_kernel(recording.meta.kernel, path.name).kernel
    cases = list(matrix())
    vms = {}
    for step in recording.steps:
        vm = vms.get(step.id)
        if vm is None:
            vm = vms[step.id] = DirectVm(step.cfg, kernel)
        act = cases[step.id - 1].acts[step.step]
        assert act.inputs == step.inputs
        assert (vm.do(act), vm.rc) == ((step.events, step.expected), step.rc)


def test_the_model_does_every_step_on_protected_vms():
    """Recorded from 7.3.4 whose kvm.ko was rebuilt with KVM_SW_PROTECTED_VM."""
    recording = read_recording(DATA / "protected-7.3.jsonl.gz")
    kernel = choose_kernel(recording.meta.kernel, "7.3").kernel
    cases = list(memory_matrix())
    assert len(recording.steps) == sum(len(case.acts) for case in cases) > 400
    vms = {}
    for step in recording.steps:
        vm = vms.setdefault(step.id, DirectVm(step.cfg, kernel))
        act = cases[step.id - 1].acts[step.step]
        assert (act.op, act.inputs) == (step.op, step.inputs)
        assert (vm.do(act), vm.rc) == ((step.events, step.expected), step.rc)


@pytest.mark.parametrize(("made", "given"), [("matrix-6.1.jsonl.gz", "linux-6.1.jsonl")])
def test_the_products_recording_equals_the_one_that_was_given(made, given):
    """Each of the steps that the older recording of the same kernel has."""
    new = {(step.id, step.step): step for step in read_recording(DATA / made).steps}
    for step in read_recording(DATA / given).steps:
        other = new[step.id, step.step]
        assert (other.cfg, other.rc, other.op) == (step.cfg, step.rc, step.op)
        assert (other.inputs, other.mode, other.cpl) == (step.inputs, step.mode, step.cpl)
        assert (other.events, other.expected) == (step.events, step.expected)
