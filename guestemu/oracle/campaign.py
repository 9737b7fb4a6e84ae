# SPDX-License-Identifier: GPL-2.0-or-later
"""A differential campaign: random steps on the real KVM, and the model's word on each.

The machine works on one batch while the model works on the one before it. VMs live for many steps,
so that state counts; a step that differs makes a finding of its VM's history, which is then made
small. A kernel that dies, hangs or complains is also a finding; the machine is started again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.conformance.recordings.recording import Config
from guestemu.host.kvm.kernels import KvmKernel
from guestemu.oracle import wire
from guestemu.oracle.conversions import ConversionGenerator
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.generator import Generator
from guestemu.oracle.live import LiveKvm, Replies
from guestemu.oracle.matrix import Act, OracleCase
from guestemu.oracle.qemu import MachineEnded
from guestemu.oracle.reduce import (
    OracleFinding,
    Reducer,
    Suspicion,
    Trouble,
    act_text,
    signature,
)
from guestemu.oracle.steps import newly_covered, pack_config, pack_request, read_reply

BATCH: Final = 2048
_VMS: Final = 12
_LIFE: Final = 4000
"""Steps of a VM."""
_KEPT: Final = 512
_GROUP: Final = "fuzz"
_KINDS: Final = 40
"""Findings that are reduced; more are counted."""


class _Vm:
    """A VM of the campaign: what was done on it, and the model of it."""

    def __init__(self, cfg: Config, vcpus: int, kernel: KvmKernel) -> None:
        self.cfg = cfg
        self.vcpus = vcpus
        self.model = DirectVm(cfg, kernel, vcpus)
        self.history: list[Act] = []
        self.ahead: list[Act] = []
        self.is_fresh = True
        self.is_lost = False


class _Asked(msgspec.Struct, frozen=True):
    """A step of a batch: the `position`-th of its VM."""

    vm: _Vm
    act: Act
    position: int
    record: bytes


class CampaignSums(msgspec.Struct, kw_only=True):
    """What a campaign came to. `differing` counts steps, `findings` are one for each kind;
    `covered` counts places of the kernel's own code, where it has kcov."""

    steps: int = 0
    programs: int = 0
    exits: int = 0
    vms: int = 0
    features: int = 0
    covered: int = 0
    differing: int = 0
    restarts: int = 0
    findings: list[OracleFinding] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)


class OracleCampaign:
    """Compares `kvm` with the model of `kernel`. `say` is called with one line for each thing that
    happens; `directory` is where findings are written, None for nowhere. `generator` draws what is
    done; default: hypercalls and MSRs, from `seed`."""

    def __init__(
        self,
        kvm: LiveKvm,
        kernel: KvmKernel,
        *,
        seed: int = 0,
        generator: Generator | ConversionGenerator | None = None,
        say: Callable[[str], None],
        directory: Path | None = None,
        batch: int = BATCH,
    ) -> None:
        self._kvm = kvm
        self._kernel = kernel
        self._generator = generator or Generator(seed)
        self._say = say
        self._batch = batch
        self._vms: list[_Vm | None] = [None] * _VMS
        self._features: set[int] = set()
        self._known: set[str] = set()
        self._reducer = Reducer(kvm, kernel, directory)
        self._todo: list[Suspicion] = []
        self.sums = CampaignSums()

    def run(self, steps: int, tell: Callable[[int], None] = lambda _: None) -> CampaignSums:
        """Compares `steps` steps, or up to a batch more; `tell` gets the number compared so far."""
        done: tuple[list[_Asked], Replies] | None = None
        while self.sums.steps < steps or done is not None:
            ahead = 0 if done is None else len(done[0])
            work = self._next_batch() if self.sums.steps + ahead < steps else []
            if work:
                self._kvm.post([asked.record for asked in work])
            if done is not None:
                self._judge(*done)
                done = None
            if work:
                done = self._take(work)
            self._settle()
            tell(self.sums.steps)
        return self.sums

    def _next_batch(self) -> list[_Asked]:
        generator = self._generator
        for slot, vm in enumerate(self._vms):
            if vm is None or vm.is_lost or len(vm.history) >= _LIFE:
                new = _Vm(generator.config(), generator.vcpus(), self._kernel)
                self._vms[slot] = new
                self._kvm.set_config(slot, pack_config(new.cfg, new.vcpus))
                self.sums.vms += 1
        work = []
        for number in range(self._batch):
            slot = number % _VMS
            vm = self._vms[slot]
            if vm is None:
                continue
            if not vm.ahead:
                vm.ahead = generator.program(vm.vcpus)[::-1]
                self.sums.programs += 1
            act = vm.ahead.pop()
            flags = wire.QUICK | (wire.FRESH if vm.is_fresh else 0)
            vm.is_fresh = False
            vm.history.append(act)
            work.append(_Asked(vm, act, len(vm.history), pack_request(act, slot, flags)))
        return work

    def _take(self, work: list[_Asked]) -> tuple[list[_Asked], Replies] | None:
        try:
            return work, self._kvm.take()
        except MachineEnded as error:
            self._machine_ended(error, work)
            return None

    def _judge(self, work: list[_Asked], replies: Replies) -> None:
        sums = self.sums
        for index, asked in enumerate(work):
            vm, act = asked.vm, asked.act
            if vm.is_lost:
                continue
            expected = vm.model.do(act)
            found = read_reply(act, replies[index])
            sums.steps += 1
            sums.exits += len(found[0])
            feature, covered = vm.model.feature(act), newly_covered(replies[index])
            if feature not in self._features or covered:
                self._note_feature(feature, covered, act)
            if found != expected:
                sums.differing += 1
                vm.is_lost = True
                kind = signature(act, expected, found)
                self._order(Trouble.DIFFERS, kind, asked, f"{act_text(act)} ({kind})")
        if replies.splats:
            self._complaint(replies.splats, work)

    def _note_feature(self, feature: int, covered: int, act: Act) -> None:
        """`act` met something that is new in the model, or reached new code of the kernel."""
        self._features.add(feature)
        self.sums.features = len(self._features)
        self.sums.covered += covered
        kept = self._generator.kept
        if len(kept) < _KEPT:
            kept.append(act)

    def _order(self, trouble: Trouble, kind: str, asked: _Asked, how: str = "") -> None:
        """A finding is to be made of the history up to `asked`, unless its kind is known."""
        if kind in self._known or len(self._known) >= _KINDS:
            return
        self._known.add(kind)
        case = OracleCase(_GROUP, asked.vm.cfg, tuple(asked.vm.history[: asked.position]))
        self._todo.append(Suspicion(trouble, case, how))

    def _complaint(self, lines: tuple[str, ...], work: list[_Asked]) -> None:
        """The kernel printed a warning during a batch: one of its VMs made it."""
        self._say(f"the kernel says: {lines[0]}")
        kind = f"complaint {lines[0]}"
        if kind in self._known:
            return
        self._known.add(kind)
        last = {id(asked.vm): asked for asked in work}
        for asked in last.values():
            case = OracleCase(_GROUP, asked.vm.cfg, tuple(asked.vm.history[: asked.position]))
            self._todo.append(Suspicion(Trouble.COMPLAINS, case, lines[0]))

    def _lose_vms(self) -> None:
        for vm in self._vms:
            if vm is not None:
                vm.is_lost = True

    def _machine_ended(self, error: MachineEnded, work: list[_Asked]) -> None:
        """The machine is gone, and the VMs with it; what was not compared is not counted."""
        self.sums.restarts += 1
        self._say(f"{error}; started again")
        self._lose_vms()
        if error.is_own_fault and work:
            asked = work[min(error.done, len(work) - 1)]
            self._order(Trouble.ENDS, f"ends {asked.act.op.value} {error.how}", asked, error.how)

    def _settle(self) -> None:
        """Makes findings of what was ordered; no batch is under way.

        The cases take the slots of the campaign's VMs, which are made anew afterwards.
        """
        todo, self._todo = self._todo, []
        if not todo:
            return
        self._lose_vms()
        seen = set()
        missed: dict[str, None] = {}
        for index, suspicion in enumerate(todo):
            if suspicion.trouble is Trouble.COMPLAINS and suspicion.how in seen:
                continue
            try:
                finding = self._reducer.reduce(suspicion)
            except KeyboardInterrupt:
                self.sums.notes += [f"seen, not made small: {one.how}" for one in todo[index:]]
                raise
            if finding is None:
                missed[suspicion.how] = None
                continue
            seen.add(suspicion.how)
            self.sums.findings.append(finding)
            self._say(finding.summary)
        self.sums.notes += [f"not seen again: {how}" for how in missed if how not in seen]
