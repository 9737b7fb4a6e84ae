# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings that `guestemu oracle record` made of whole kernels, against the model."""

from pathlib import Path

import pytest

from guestemu.abi.errno import EINVAL
from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.conformance.recordings.reader import read_recording
from guestemu.conformance.recordings.recording import Cpuid
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
    assert len(recording.steps) == sum(len(case.acts) for case in cases) == 572
    vms = {}
    for step in recording.steps:
        vm = vms.setdefault(step.id, DirectVm(step.cfg, kernel))
        act = cases[step.id - 1].acts[step.step]
        assert (act.op, act.inputs) == (step.op, step.inputs)
        assert (vm.do(act), vm.rc) == ((step.events, step.expected), step.rc)


def _differing(made, given):
    """The steps of the older recording `given` that are not so in `made`, with both outcomes."""
    new = {(step.id, step.step): step for step in read_recording(DATA / made).steps}
    old = read_recording(DATA / given).steps
    assert len(old) == 1549
    for step in old:
        other = new[step.id, step.step]
        assert (other.cfg, other.op) == (step.cfg, step.op)
        assert (other.inputs, other.mode, other.cpl) == (step.inputs, step.mode, step.cpl)
        if (other.rc, other.events, other.expected) != (step.rc, step.events, step.expected):
            yield step, other.expected


def test_the_products_recording_equals_the_one_that_was_given():
    """Each of the steps that the older recording of the same kernel has."""
    assert list(_differing("matrix-6.1.jsonl.gz", "linux-6.1.jsonl")) == []


def test_the_recording_of_6_12_equals_the_given_one_but_for_what_changed_in_between():
    """Given is 6.12.95, made 6.12.118, which refuses long mode before KVM_SET_CPUID2."""
    changed = list(_differing("matrix-6.12.jsonl.gz", "linux-6.12.jsonl"))
    assert len(changed) == 23
    for step, now in changed:
        assert step.cfg.cpuid is Cpuid.NONE
        assert step.mode in {"long64", "compat32"}
        assert (now.outcome, now.rc) == ("set_sregs_failed", -EINVAL)
