# SPDX-License-Identifier: GPL-2.0-or-later
"""From a VM's history that went wrong to the smallest case that does, with an explanation.

A case is tried on a VM of its own. What is left is written as a recording of that KVM: `conform`
then shows the difference without QEMU, `oracle run` does it again on any kernel.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from guestemu.conformance.recordings.compare import Disagreement, compare_step
from guestemu.conformance.recordings.recording import (
    Answer,
    Config,
    Cpuid,
    Event,
    Filter,
    Hex,
    Inputs,
    RecordedOutcome,
    StepOp,
)
from guestemu.host.kvm.kernels import KERNELS, KvmKernel
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import LONG, Act, OracleCase
from guestemu.oracle.qemu import MachineEnded, splats
from guestemu.oracle.recorder import CaseResult, run_cases, vcpus_of, write_recording

_WORDS: Final = {
    StepOp.SET_SLOT: ("gpa", "size", "slot", "flags", "offset"),
    StepOp.SET_ATTRIBUTES: ("gpa", "size", "attributes", "flags"),
    StepOp.FALLOCATE: ("offset", "length", "mode"),
    StepOp.GUEST_READ: ("", "gpa"),
    StepOp.GUEST_WRITE: ("value", "gpa"),
    StepOp.HOST_READ: ("offset",),
    StepOp.HOST_WRITE: ("offset", "value"),
    StepOp.CREATE_MEMFD: ("size", "flags"),
}
_OWN_PAGES: Final = 0x40000
"""Below lie the guest's own code and tables: a guest whose own pages are converted ends."""
_TRIES: Final = 400
_SLOW_TRIES: Final = 24
"""Tries where each costs a start of the machine."""
_AT_ONCE: Final = 16


class Trouble(enum.Enum):
    """What is wrong with a case."""

    DIFFERS = "differs"
    COMPLAINS = "complains"
    ENDS = "ends"


class Suspicion(msgspec.Struct, frozen=True):
    """A case with which something was wrong; `how` is the machine's or the kernel's word on it."""

    trouble: Trouble
    case: OracleCase
    how: str = ""


class OracleFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A case on which the kernel and the model differ, or which the kernel does not stand.

    `differences` are of its last step, `explanation` in words; `file` is the recording, empty where
    none was written.
    """

    trouble: str
    summary: str
    explanation: str
    steps: int
    differences: tuple[Disagreement, ...]
    file: str = ""


_PROPERTIES: Final = {
    "zeroes_ret": "run->hypercall.ret is set to 0 at the exit (K3-g)",
    "writes_flags_word": "the exit writes all 64 bits of run->hypercall.flags (K3-h)",
    "compares_untruncated_nr": "the exit is lost where RAX has bits above 31 outside 64-bit code "
    "(K3-i, Linux 6.10 to 6.13)",
    "enforced_msr_is_unknown": "an MSR whose feature is enforced away counts as unknown",
    "host_zero_access": "host reads, and writes of 0, of an MSR that is enforced away succeed",
    "quirks_stick": "a quirk that was disabled stays so",
    "sregs_need_cpuid": "KVM_SET_SREGS into long mode fails before KVM_SET_CPUID2",
}


def signature(
    act: Act,
    expected: tuple[tuple[Event, ...], RecordedOutcome],
    found: tuple[tuple[Event, ...], RecordedOutcome],
) -> str:
    """Names the kind of a difference: the instruction and the fields that differ."""
    fields = [
        name
        for name in RecordedOutcome.__struct_fields__
        if getattr(expected[1], name) != getattr(found[1], name)
    ]
    exits = f"{len(expected[0])}/{len(found[0])}" if expected[0] != found[0] else ""
    msr = f" {act.inputs.msr:#x}" if act.op.is_msr else ""
    nr = f" nr {act.inputs.rax & 0xFFFFFFFF:#x}" if act.op.is_hypercall else ""
    if act.op.is_hypercall and act.inputs.rax & 0xFFFFFFFF > 100:
        nr = " nr other"
    ends = f"{expected[1].outcome}/{found[1].outcome}"
    return f"{act.op.value}{nr}{msr} {act.mode == LONG} {ends} {exits} {' '.join(fields)}"


class _Kind(NamedTuple):
    """What a smaller case has to share with the first one: the instruction, how it ended in the
    model and on the real KVM, and whether the exits differ."""

    op: StepOp
    expected: str | None
    found: str | None
    by_exits: bool


class Reducer:
    """Makes findings on `kvm` against the model of `kernel`; recordings go to `directory`.

    A smaller case is taken where it goes wrong in the same way: another one could have a cause of
    its own, such as a guest that was made to convert its own code.
    """

    def __init__(self, kvm: LiveKvm, kernel: KvmKernel, directory: Path | None = None) -> None:
        self._kvm = kvm
        self._kernel = kernel
        self._directory = directory
        self._kind: _Kind | None = None
        self._left = 0
        self._count = 0

    def reduce(self, suspicion: Suspicion) -> OracleFinding | None:
        """The finding; None where nothing is wrong with the case when it is done again."""
        self._left = _SLOW_TRIES if suspicion.trouble is Trouble.ENDS else _TRIES
        self._kind = None
        is_wrong = self._test(suspicion.trouble)
        case = suspicion.case
        last = msgspec.structs.replace(case, acts=case.acts[-1:])
        whole = is_wrong([last, case])
        if whole is None:
            return None
        case = whole
        if suspicion.trouble is Trouble.COMPLAINS:
            case = self._up_to_complaint(case, is_wrong)
        case = self._with_fewer_acts(case, is_wrong)
        case = self._with_simpler(case, is_wrong)
        return self._finding(suspicion, case)

    def _up_to_complaint(
        self, case: OracleCase, is_wrong: Callable[[Sequence[OracleCase]], OracleCase | None]
    ) -> OracleCase:
        """A complaint is known for a batch only: `case` up to the step that made it, alone where
        it complains alone."""
        silent, loud = 0, len(case.acts)
        while loud - silent > 1 and self._left > 0:
            middle = (silent + loud) // 2
            if is_wrong([msgspec.structs.replace(case, acts=case.acts[:middle])]) is None:
                silent = middle
            else:
                loud = middle
        alone = msgspec.structs.replace(case, acts=case.acts[loud - 1 : loud])
        return is_wrong([alone]) or msgspec.structs.replace(case, acts=case.acts[:loud])

    def _test(self, trouble: Trouble) -> Callable[[Sequence[OracleCase]], OracleCase | None]:
        """A function that returns the first of some cases with which `trouble` is wrong, cut behind
        the step where it is."""
        if trouble is Trouble.DIFFERS:
            return self._first_that_differs
        return lambda cases: self._first_that_hurts(cases, trouble)

    def _first_that_differs(self, cases: Sequence[OracleCase]) -> OracleCase | None:
        if self._left <= 0 or not cases:
            return None
        self._left -= len(cases)
        for result in run_cases(self._kvm, cases):
            first = _first_difference(result, self._kernel)
            if first is None:
                continue
            index, kind = first
            if self._kind in {None, kind}:
                self._kind = kind
                case = result.case
                return msgspec.structs.replace(case, acts=case.acts[: index + 1])
        return None

    def _first_that_hurts(self, cases: Sequence[OracleCase], trouble: Trouble) -> OracleCase | None:
        for case in cases:
            if self._left <= 0:
                return None
            self._left -= 1
            before = len(self._kvm.console())
            try:
                (result,) = run_cases(self._kvm, [case])
            except MachineEnded:
                return case if trouble is Trouble.ENDS else None
            if trouble is Trouble.ENDS and result.error and "no VM" not in result.error:
                return case
            if trouble is Trouble.COMPLAINS and splats(self._kvm.console()[before:]):
                return case
        return None

    def _with_fewer_acts(
        self, case: OracleCase, is_wrong: Callable[[Sequence[OracleCase]], OracleCase | None]
    ) -> OracleCase:
        """Leaves out acts in ever smaller pieces (delta debugging); the last one stays."""
        size = max(1, (len(case.acts) - 1) // 2)
        while len(case.acts) > 1 and self._left > 0:
            shorter = is_wrong(list(_without(case, size))[:_AT_ONCE])
            if shorter is not None:
                case = shorter
                size = min(size, max(1, (len(case.acts) - 1) // 2))
            elif size == 1:
                break
            else:
                size = max(1, size // 2)
        return case

    def _with_simpler(
        self, case: OracleCase, is_wrong: Callable[[Sequence[OracleCase]], OracleCase | None]
    ) -> OracleCase:
        """Takes the configuration and the inputs back to what is usual, one by one."""
        changed = True
        while changed and self._left > 0:
            changed = False
            choices = list(_simpler(case))
            for start in range(0, len(choices), _AT_ONCE):
                found = is_wrong(choices[start : start + _AT_ONCE])
                if found is not None:
                    case, changed = found, True
                    break
        return case

    def _finding(self, suspicion: Suspicion, case: OracleCase) -> OracleFinding:
        (result,) = run_cases(self._kvm, [case])
        differences: tuple[Disagreement, ...] = ()
        if suspicion.trouble is Trouble.DIFFERS:
            differences = _differences(result, self._kernel)
            explanation = _explain(result, self._kernel, differences)
            summary = f"differs: {act_text(case.acts[-1])}: {_short(differences)}"
        else:
            explanation = suspicion.how
            summary = f"{suspicion.how}: {act_text(case.acts[-1])}"
        file = ""
        if self._directory is not None:
            self._count += 1
            path = self._directory / f"finding-{self._count}.jsonl"
            write_recording(path, self._kvm.machine, [result])
            file = str(path)
        return OracleFinding(
            trouble=suspicion.trouble.value,
            summary=summary,
            explanation=explanation,
            steps=len(case.acts),
            differences=differences,
            file=file,
        )


def differing(result: CaseResult, kernel: KvmKernel) -> int | None:
    """The first step of a case that the model of `kernel` does not do so."""
    first = _first_difference(result, kernel)
    return None if first is None else first[0]


def _first_difference(result: CaseResult, kernel: KvmKernel) -> tuple[int, _Kind] | None:
    vm = DirectVm(result.case.cfg, kernel, vcpus_of(result.case.acts))
    for index, step in enumerate(result.steps):
        act, expected = result.case.acts[index], step.expected
        events, out = vm.do(act)
        if (events, out, vm.rc) != (step.events, expected, step.rc):
            return index, _Kind(act.op, out.outcome, expected.outcome, events != step.events)
    return None


def _differences(result: CaseResult, kernel: KvmKernel) -> tuple[Disagreement, ...]:
    vm = DirectVm(result.case.cfg, kernel, vcpus_of(result.case.acts))
    found: list[Disagreement] = []
    for act, step in zip(result.case.acts, result.steps, strict=True):
        events, out = vm.do(act)
        found += compare_step(step, vm.rc, events, out)
    return tuple(found)


def _short(differences: Sequence[Disagreement]) -> str:
    return ", ".join(
        f"{item.field} {_text(item.expected)}, model {_text(item.found)}"
        for item in differences[:3]
    )


def _text(value: int | str | None) -> str:
    return "-" if value is None else str(value)


def _explain(result: CaseResult, kernel: KvmKernel, differences: Sequence[Disagreement]) -> str:
    """Which property of a kernel, or which kernel's model, the case agrees with."""
    for name, meaning in _PROPERTIES.items():
        value = getattr(kernel, name)
        other = msgspec.structs.replace(kernel, **{name: not value})
        if differing(result, other) is None:
            lead = "as a kernel where" if not value else "as a kernel where it is not so that"
            return f"{lead} {meaning}"
    for name, model in KERNELS.items():
        if name != kernel.name and differing(result, model) is None:
            return f"as the model of {name}"
    count = len(differences)
    return f"as no kernel that has a model; {count} field{'s' if count != 1 else ''} differ"


def act_text(act: Act) -> str:
    """An act for people."""
    inputs = act.inputs
    vcpu = f" on vCPU {act.vcpu}" if act.vcpu else ""
    if act.op.is_hypercall:
        words = " ".join(
            f"{name}={getattr(inputs, name):#x}" for name in ("rax", "rbx", "rcx", "rdx")
        )
        answer = "" if inputs.answer is Answer.WRITE_RET else f", user space: {inputs.answer.value}"
        return f"{act.op.value} {words} in {act.mode} at CPL {act.cpl}{vcpu}{answer}"
    if act.op.is_msr:
        value = f" := {inputs.val:#x}" if inputs.val else ""
        place = "" if act.op.is_ioctl else f" in {act.mode} at CPL {act.cpl}"
        return f"{act.op.value} {inputs.msr:#x}{value}{place}{vcpu}"
    if act.op in _WORDS:
        values = (inputs.rax, inputs.rbx, inputs.rcx, inputs.rdx, inputs.rsi)
        named = zip(_WORDS[act.op], values, strict=False)
        return " ".join([act.op.value, *(f"{name}={value:#x}" for name, value in named if name)])
    return f"{act.op.value} {inputs.val:#x}{vcpu}"


def _without(case: OracleCase, size: int) -> Iterator[OracleCase]:
    acts = case.acts
    for start in range(0, len(acts) - 1, size):
        end = min(start + size, len(acts) - 1)
        yield msgspec.structs.replace(case, acts=acts[:start] + acts[end:])


_PLAIN: Final = Config(
    exit_hypercall=None,
    cpuid=Cpuid.LEAF,
    kvm_features=Hex(0),
    enforce_pv=0,
    irqchip=0,
    user_space_msr=None,
    msr_filter=Filter.NONE,
)
_SMALL: Final = (Hex(0), Hex(1), Hex(0x100000))


def _simpler(case: OracleCase) -> Iterator[OracleCase]:
    for name in Config.__struct_fields__:
        usual = getattr(_PLAIN, name)
        if name != "protected" and getattr(case.cfg, name) != usual:
            cfg = msgspec.structs.replace(case.cfg, **{name: usual})
            yield msgspec.structs.replace(case, cfg=cfg)
    for index, act in enumerate(case.acts):
        for simpler in _simpler_act(act):
            acts = (*case.acts[:index], simpler, *case.acts[index + 1 :])
            yield msgspec.structs.replace(case, acts=acts)


def _simpler_act(act: Act) -> Iterator[Act]:
    if act.vcpu:
        yield msgspec.structs.replace(act, vcpu=0)
    if act.mode != LONG:
        yield msgspec.structs.replace(act, mode=LONG)
    if act.cpl:
        yield msgspec.structs.replace(act, cpl=0)
    if act.inputs.answer is not Answer.WRITE_RET:
        yield _changed(act, answer=Answer.WRITE_RET)
    yield from _simpler_inputs(act)


def _simpler_inputs(act: Act) -> Iterator[Act]:
    # Slots 0 and 1 hold the guest itself: /init refuses to change them.
    has_slot = act.op is StepOp.SET_SLOT
    converts = act.inputs.answer is Answer.CONVERT
    for name in ("rbx", "rcx", "rdx", "rsi", "ret", "val", "answer_data"):
        if has_slot and name == "rcx":
            continue
        value = getattr(act.inputs, name)
        if value & (value - 1):
            yield _changed(act, **{name: Hex(1 << value.bit_length() - 1)})
        for small in _SMALL:
            if converts and name == "rbx" and small < _OWN_PAGES:
                continue
            if value != small and (value not in _SMALL or small < value):
                yield _changed(act, **{name: small})
    if act.op.is_hypercall:
        for bit in range(32, 64):
            if act.inputs.rax >> bit & 1:
                yield _changed(act, rax=Hex(act.inputs.rax & ~(1 << bit)))


def _changed(act: Act, **changes: object) -> Act:
    inputs: Inputs = msgspec.structs.replace(act.inputs, **changes)
    return msgspec.structs.replace(act, inputs=inputs)
