# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a recording against a model: every guest step by guest instructions on the machine, every
ioctl step through the model, the steps of a case on one VM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi.msrs import MSR_KVM_CUSTOM_FIRST, MSR_KVM_CUSTOM_LAST
from guestemu.abi.x86 import Mode
from guestemu.conformance.recordings.compare import Disagreement, compare_step
from guestemu.conformance.recordings.model import RecordedHost
from guestemu.conformance.recordings.readout import read_outcome
from guestemu.conformance.recordings.recording import RecordedOutcome, RecordedStep, Recording
from guestemu.conformance.recordings.testvm import CODE, TestVm
from guestemu.host.kvm.kernels import KvmKernel
from guestemu.machine import layout

_MODES: Final[Mapping[str, Mode]] = {mode.text: mode for mode in Mode} | {"compat": Mode.COMPAT32}


class UnsupportedStep(msgspec.Struct, frozen=True):
    """A step that was not compared, and why."""

    id: int
    step: int
    reason: str


class StepTally(msgspec.Struct):
    """What was found so far. `steps` counts all steps that were looked at, so
    `steps` = `agree` + steps with a disagreement + `unsupported`."""

    steps: int = 0
    agree: int = 0
    disagree: list[Disagreement] = msgspec.field(default_factory=list)
    unsupported: list[UnsupportedStep] = msgspec.field(default_factory=list)


class Conformance:
    """Replays recordings on one machine under the model of `kernel`."""

    def __init__(self, kernel: KvmKernel) -> None:
        self._kernel = kernel
        self._vm = TestVm()

    def close(self) -> None:
        """Frees the machine."""
        self._vm.close()

    def run(
        self, recording: Recording, tally: StepTally, after_step: Callable[[], None] = lambda: None
    ) -> None:
        """Compares every step and adds the result to `tally`; `after_step` is called after each.

        The steps of a case need not be adjacent: its VM lives as long as the recording.
        """
        for case in recording.failed:
            tally.steps += 1
            tally.unsupported.append(UnsupportedStep(case.id, 0, f"not recorded: {case.error}"))
        hosts: dict[int, RecordedHost] = {}
        for step in recording.steps:
            host = hosts.get(step.id)
            if host is None:
                host = hosts[step.id] = RecordedHost(step.cfg, self._kernel)
            tally.steps += 1
            reason = unsupported_reason(step)
            if reason is not None:
                tally.unsupported.append(UnsupportedStep(step.id, step.step, reason))
            else:
                out = self.execute(host, step)
                differences = compare_step(step, host.rc, host.events, out)
                tally.disagree.extend(differences)
                tally.agree += not differences
            after_step()

    def execute(self, host: RecordedHost, step: RecordedStep) -> RecordedOutcome:
        """Does one step and returns how it ended; its exits are in `host.events`."""
        if step.op.is_ioctl:
            host.begin(step.inputs, layout.STUB)
            return host.ioctl(step.op, step.inputs)
        vcpu = self._vm.vcpu
        host.begin(step.inputs, CODE[step.op], lambda: vcpu.set_code_is_64bit(False))
        mode = _MODES[step.mode]
        refused = host.refused_mode(mode.text)
        if refused is not None:
            return refused
        end = self._vm.run(
            step.op, step.inputs, mode, step.cpl, host, read_only=bool(step.cfg.ro_code)
        )
        return read_outcome(self._vm, step, mode, end, host.events)


def unsupported_reason(step: RecordedStep) -> str | None:
    """Why `step` cannot be compared, or None: MSRs that are not KVM's, unknown modes."""
    if step.vcpu:
        return "vCPU 1; the machine of this comparison has one vCPU"
    if step.op.is_memory and not step.cfg.protected:
        return f"{step.op.value} in a VM without guest_memfd"
    if step.op.is_msr and not (MSR_KVM_CUSTOM_FIRST <= step.inputs.msr <= MSR_KVM_CUSTOM_LAST):
        return f"MSR {step.inputs.msr:#x} is not one of KVM's own (0x4b564d00-0x4b564dff)"
    if step.op.is_ioctl:
        return None
    mode = _MODES.get(step.mode)
    if mode is None:
        return f"mode {step.mode!r} is unknown (modes: {', '.join(_MODES)})"
    if step.cpl not in range(4) or (mode is Mode.REAL16 and step.cpl):
        return f"no CPL {step.cpl} in mode {step.mode}"
    return None
