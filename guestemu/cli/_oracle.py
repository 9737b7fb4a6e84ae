# SPDX-License-Identifier: GPL-2.0-or-later
"""What the verbs of `guestemu oracle` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.files import check_place
from guestemu.cli import console
from guestemu.cli._step_progress import StepProgress
from guestemu.conformance.recordings.compare import Disagreement, compare_step
from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.conformance.recordings.reader import read_recording
from guestemu.conformance.recordings.recording import RecordedStep, Recording
from guestemu.oracle.conversions import memory_matrix
from guestemu.oracle.harness_build import build_init
from guestemu.oracle.image import find_kernel
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import Act, OracleCase, matrix
from guestemu.oracle.qemu import NATIVE, TCG, Accelerator, MachineEnded, find_qemu, splats, version
from guestemu.oracle.recorder import CaseResult, run_cases, write_recording
from guestemu.oracle.speed import OracleSpeed, measure
from guestemu.oracle.wire import MachineFacts
from guestemu.report.document import Bullets, Content, Document, Grid, Item, Paragraph
from guestemu.report.page import TableCell

_VALUES: Final = {"ok": "good", "optional": "warn", "missing": "bad"}
_SHOWN: Final = 30
_SHOWN_WRONG: Final = 20
_DEVICE: Final = Path("/dev/kvm")


class OracleCheck(msgspec.Struct, frozen=True):
    """One thing that was looked at; `state` is ok, optional or missing."""

    name: str
    state: str
    detail: str


class MadeRecording(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded: `failed` are cases without steps, `complaints` lines of the kernel's."""

    file: str
    kernel: str
    cases: int
    steps: int
    failed: tuple[str, ...]
    complaints: tuple[str, ...]


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A recording done again on another kernel."""

    kernel: str
    recorded: str
    steps: int
    equal: int
    differences: tuple[Disagreement, ...]
    failed: tuple[str, ...]


def accelerator(native: bool, emulated: Accelerator = TCG) -> Accelerator:
    """`emulated`, or this computer's KVM. Raises `MissingError` where that is not there."""
    if not native:
        return emulated
    try:
        with _DEVICE.open("r+b", buffering=0):
            return NATIVE
    except OSError as error:
        raise MissingError(
            f"--native: {_DEVICE} cannot be opened: {error.strerror}; leave it out, and QEMU "
            "emulates the processor"
        ) from None


def checks_document(checks: Sequence[OracleCheck]) -> Document:
    """A line for each thing that was looked at."""
    rows = tuple(
        (TableCell(check.state, _VALUES[check.state]), check.name, check.detail) for check in checks
    )
    return Document("", lead=(Grid((), rows, is_words=True),))


def examine(kernel: str, modules: Path | None, native: bool) -> list[OracleCheck]:
    """What is there for the oracle, and what `kernel` says about itself if one is named."""
    checks = []
    try:
        path = find_qemu()
        checks.append(OracleCheck("QEMU", "ok", f"{version(path)} ({path})"))
    except MissingError as error:
        checks.append(OracleCheck("QEMU", "missing", str(error)))
    try:
        checks.append(OracleCheck("compiler", "ok", build_init()[1]))
    except MissingError as error:
        checks.append(OracleCheck("compiler", "missing", str(error)))
    has_device = _DEVICE.exists()
    text = "there, for --native" if has_device else "not there; TCG emulates the processor"
    checks.append(OracleCheck("/dev/kvm", "ok" if has_device else "optional", text))
    if kernel and all(check.state != "missing" for check in checks):
        checks.extend(_look_at(kernel, modules, accelerator(native)))
    return checks


def _look_at(kernel: str, modules: Path | None, how: Accelerator) -> Iterator[OracleCheck]:
    try:
        with LiveKvm(find_kernel(kernel, modules), how) as kvm:
            machine = kvm.machine
            yield OracleCheck("kernel", "ok", f"{machine.release}, {machine.build}")
            yield OracleCheck("start-up", "ok", f"{kvm.start_up:.1f} s")
            for name, value in machine.capabilities.items():
                yield OracleCheck("KVM", "ok" if value else "optional", f"{name} {value:#x}")
            for line in splats(kvm.console()):
                yield OracleCheck("console", "optional", line)
    except (MachineEnded, MissingError) as error:
        yield OracleCheck("kernel", "missing", str(error))


def _progress(cases: list[OracleCase], kvm: LiveKvm) -> list[CaseResult]:
    with StepProgress(len(cases)) as progress:
        return list(run_cases(kvm, cases, progress.advance))


def check_protected(machine: MachineFacts, kernel: str) -> None:
    """Raises `MissingError` for a KVM without software-protected VMs."""
    if not machine.has_protected_vms:
        raise MissingError(
            f"--memory: the KVM of {kernel} has no software-protected VMs; build modules that do "
            f"with `guestemu oracle build-modules {kernel} -o DIR` and add --modules DIR"
        )


def record_matrix(
    kernel: str, modules: Path | None, output: Path, *, native: bool, memory: bool = False
) -> MadeRecording:
    """Records the matrix, or with `memory` that of conversions, into `output`."""
    check_place(output, "-o")
    cases = list(memory_matrix() if memory else matrix())
    with LiveKvm(find_kernel(kernel, modules), accelerator(native)) as kvm:
        if memory:
            check_protected(kvm.machine, kernel)
        console.note(f"{kvm.machine.release} is up after {kvm.start_up:.1f} s")
        results = _progress(cases, kvm)
        machine, complaints = kvm.machine, splats(kvm.console())
    write_recording(output, machine, results)
    return MadeRecording(
        file=str(output),
        kernel=machine.release,
        cases=len(results),
        steps=sum(len(result.steps) for result in results),
        failed=tuple(f"case {item.number}: {item.error}" for item in results if item.error),
        complaints=complaints,
    )


def recording_document(made: MadeRecording) -> Document:
    """What was recorded, and what went wrong."""
    failed = f", {len(made.failed)} cases failed" if made.failed else ""
    title = f"{made.file}: {made.steps} steps of {made.cases} cases from {made.kernel}{failed}"
    wrong = (*made.failed[:_SHOWN_WRONG], *made.complaints[:_SHOWN_WRONG])
    return Document(title, lead=(Bullets(wrong),))


def cases_of(recording: Recording) -> list[tuple[OracleCase, tuple[RecordedStep, ...]]]:
    """The cases of a recording with their steps, in the order of their first step."""
    found: dict[int, list[RecordedStep]] = {}
    for step in recording.steps:
        found.setdefault(step.id, []).append(step)
    return [
        (OracleCase(steps[0].grp, steps[0].cfg, tuple(_act(step) for step in steps)), tuple(steps))
        for steps in found.values()
    ]


def _act(step: RecordedStep) -> Act:
    return Act(op=step.op, inputs=step.inputs, mode=step.mode, cpl=step.cpl, vcpu=step.vcpu)


def replay_recording(kernel: str, modules: Path | None, recording: Path, native: bool) -> Replayed:
    """Does the steps of `recording` on `kernel` and compares every field."""
    source = read_recording(recording)
    pairs = cases_of(source)
    for case, steps in pairs:
        check_case(case, f"{recording}: case {steps[0].id}")
    with LiveKvm(find_kernel(kernel, modules), accelerator(native)) as kvm:
        results = _progress([case for case, _ in pairs], kvm)
        release = kvm.machine.release
    differences: list[Disagreement] = []
    equal = 0
    failed = []
    for (_, steps), result in zip(pairs, results, strict=True):
        if result.error:
            failed.append(f"case {steps[0].id}: {result.error}")
        for old, new in zip(steps, result.steps, strict=False):
            found = compare_step(old, new.rc, new.events, new.expected)
            differences += found
            equal += not found
    return Replayed(
        kernel=release,
        recorded=source.meta.kernel,
        steps=len(source.steps),
        equal=equal,
        differences=tuple(differences),
        failed=tuple(failed),
    )


def check_case(case: OracleCase, place: str) -> None:
    """Raises `InputError` for what /init cannot carry out."""
    from guestemu.oracle.matrix import MODES

    for act in case.acts:
        if act.mode not in MODES:
            raise InputError(f"{place}: mode {act.mode!r} is unknown; use {', '.join(MODES)}")
        if act.cpl not in range(4) or act.vcpu not in (0, 1):
            raise InputError(f"{place}: CPL {act.cpl} on vCPU {act.vcpu}; 0 to 3 on 0 or 1")
    if len(case.acts) >= 4000:
        raise InputError(f"{place}: {len(case.acts)} steps; 4000 at most in one case")


def replay_document(replayed: Replayed) -> Document:
    """For people."""
    lead: list[Content] = []
    rows = tuple(
        (item.id, item.step, item.field, _text(item.expected), _text(item.found))
        for item in replayed.differences[:_SHOWN]
    )
    if rows:
        lead.append(Grid(("case", "step", "field", "recorded", "now"), rows))
    if len(replayed.differences) > _SHOWN:
        text = f"and {len(replayed.differences) - _SHOWN} more fields; --json lists them all"
        lead.append(Paragraph(text))
    lead += map(Paragraph, replayed.failed[:_SHOWN])
    word = "equal" if replayed.equal == replayed.steps else "different"
    text = f": {replayed.steps} steps, {replayed.equal} equal"
    lead.append(Item(text, (), "green" if word == "equal" else "red", word))
    title = f"recorded from {replayed.recorded}, done again on {replayed.kernel}"
    return Document(title, lead=tuple(lead))


def _text(value: int | str | None) -> str:
    return "-" if value is None else str(value)


def measure_speed(kernel: str, modules: Path | None, batches: int, native: bool) -> OracleSpeed:
    """Measures steps a second on `kernel`."""
    with LiveKvm(find_kernel(kernel, modules), accelerator(native)) as kvm:
        choice = choose_kernel(kvm.machine.release, kernel)
        return measure(kvm, choice.kernel, batches)


def speed_document(measured: OracleSpeed) -> Document:
    """For people."""
    rows = (
        ("start-up", f"{measured.start_up:.1f} s"),
        ("client in C", f"{measured.channel:.0f} steps/s"),
        ("model alone", f"{measured.model:.0f} steps/s"),
        ("campaign", f"{measured.campaign:.0f} steps/s, {measured.ratio:.2f} of the client"),
    )
    return Document("", lead=(Grid((), rows),))
