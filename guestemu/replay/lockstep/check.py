# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-step as a check of a campaign: other hosts follow the program that is being run.

Only divergences that no known difference explains are violations: the postings differ in dozens of
known ways, which are rows of `known.KNOWN` and not findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from guestemu.checks.base import CONVERSION_KINDS, OpView, Violation
from guestemu.events.exits import AnsweredExit, HypercallExit
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host, Hypercall
from guestemu.host.userspace.base import VmStopped
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.program.program import Header, SevKind
from guestemu.replay.lockstep.compare import compare
from guestemu.replay.lockstep.run import HostChoice, Watcher, choices_beside
from guestemu.replay.lockstep.side import Side, Traits, traits_of
from guestemu.runner.testbed import Testbed, build_testbed

_MERGED: Final = Header().host

_OF_THE_GUEST: Final = CONVERSION_KINDS | {
    OpKind.WRITE,
    OpKind.READ,
    OpKind.STOP_CONVERSION,
    OpKind.FAIL_SPLIT,
    OpKind.UNMAP,
    OpKind.CLEAR_PRESENT,
    OpKind.TOUCH_CBIT,
}
"""The kernel's calls and edits of its page tables: none looks at what a host answers (A30:
kvm_sev_hc_page_enc_status() in arch/x86/kernel/kvm.c has no use for RAX)."""

_APART: Final = frozenset(
    {
        OpKind.HYPERCALL,
        OpKind.RDMSR,
        OpKind.WRMSR,
        OpKind.ANSWER,
        OpKind.FAIL_MSR,
        OpKind.VM_RESET,
        *(kind for kind, spec in SPECS.items() if spec.by_host),
    }
)
"""Single instructions with registers of their own, and what only concerns the host: what the guest
did before makes no difference to them, and they leave nothing behind in it."""


class _Follower:
    """One other host with a testbed and a guest of its own.

    A guest whose answers do not matter to it does the same on every host. So where `may_repeat`
    the host hears the exits of the guest that is checked, in place of its own guest's, which then
    has not run; an operation to which that makes a difference has it catch up first.
    """

    def __init__(self, header: Header, choice: HostChoice) -> None:
        self._testbed: Testbed = build_testbed(choice.header(header))
        self._testbed.checks = ()
        self._watcher = Watcher(self._testbed, traits_of(choice.label, self._testbed.host))
        self._hooks = self._testbed.guest.machine.hooks
        self._is_stopped = False
        self._left_out: list[Op] | None = None
        is_snippet = isinstance(self._testbed.guest, SnippetGuest)
        self.may_repeat = is_snippet and header.sev is SevKind.SEV and not choice.plugin

    def reset(self) -> None:
        """Before a program."""
        self._testbed.reset()
        self._watcher.start()
        self._is_stopped = False
        self._left_out = [] if self.may_repeat else None

    def step(self, view: OpView, own: Side, calls: Sequence[Hypercall] | None) -> Side | None:
        """The host's side of the operation; None behind the one that stopped its VM. `calls` are
        the hypercalls among the exits of `own`, if they are all that it has. A side says nothing of
        RIP, which need not be right at each load and store."""
        if self._is_stopped:
            return None
        op = view.op
        if self._left_out is not None:
            if op.kind in _OF_THE_GUEST and calls is not None:
                self._left_out.append(op)
                self._repeat(op, own, calls)
                return self._watcher.sides[-1]
            if op.kind not in _APART:
                self._catch_up(self._left_out)
            else:
                self._left_out.append(op)
        try:
            with self._hooks.rip_by_block():
                self._testbed.step(view.index, op, None, [])
        except VmStopped:
            self._hooks.clear()
            self._watcher.stopped(op)
            self._is_stopped = True
        return self._watcher.sides[-1]

    def _repeat(self, op: Op, own: Side, calls: Sequence[Hypercall]) -> None:
        """Has the host answer the exits of `own` as if its guest had made them."""
        answer = self._testbed.host.hypercall
        exits = own.exits
        records: list[AnsweredExit] = []
        add = records.append
        is_same = True
        try:
            for record, call in zip(exits, calls, strict=True):
                value = answer(call)
                if value != record.ret:
                    is_same = False
                    record = msgspec.structs.replace(record, ret=value)
                add(record)
        except VmStopped:
            self._watcher.add(op, tuple(records), None)
            self._is_stopped = True
            return
        self._watcher.add(op, exits if is_same else tuple(records), own.outcome)

    def _catch_up(self, ops: Sequence[Op]) -> None:
        """Runs `ops`, the program so far, on the guest and on the host, which begins anew."""
        self._left_out = None
        sides = self._watcher.sides
        self._testbed.reset()
        self._watcher.start()
        for index, op in enumerate(ops):
            self._testbed.step(index, op, None, [])
        self._watcher.sides = sides


def _hypercalls(view: OpView) -> list[Hypercall] | None:
    """The exits of an operation as hypercalls at CPL 0 in 64-bit code, None if there are others."""
    vcpu = view.guest.machine.current
    calls: list[Hypercall] = []
    for record in view.exits:
        if type(record) is not HypercallExit or record.cpl or not record.is_64bit:
            return None
        a0, a1, a2, a3 = record.args
        calls.append(Hypercall(record.nr, a0, a1, a2, a3, 0, True, vcpu))
    return calls


def in_step(header: Header) -> Header:
    """`header` with hosts beside it that the user's own host, if it names one, can be compared
    with: the built-in host of the merged ABI. How it differs from those of the patch sets no table
    says."""
    if not header.beside or not header.plugin:
        return header
    return msgspec.structs.replace(header, beside=(_MERGED,))


def judged_testbed(header: Header, host: Host | None = None) -> Testbed:
    """The testbed of `header` (with `host` in place of the one that it names), judged by lock-step
    where it asks for that. Raises `InputError` for a configuration that cannot be."""
    testbed = build_testbed(header, host)
    if header.beside:
        alone = msgspec.structs.replace(header, beside=())
        testbed.checks = (LockstepCheck(alone, choices_beside(header)[1:]),)
    return testbed


class LockstepCheck:
    """Repeats every operation on the hosts of `choices` and compares with the host checked.

    `header` gives the guest and its machine; the host checked is the one of the testbed. It has to
    be the first check of its testbed: others change the maps of the view.
    """

    name = "lockstep"
    kinds: frozenset[OpKind] | None = None

    def __init__(self, header: Header, choices: Sequence[HostChoice]) -> None:
        self._label = HostChoice(header.host, header.switches).label
        self._traits: Traits | None = None
        self._poisoned: frozenset[int] = frozenset()
        self._followers = [_Follower(header, choice) for choice in choices]

    def after(self, view: OpView) -> Iterable[Violation]:
        """Violations for what nothing explains."""
        if view.index == 0:
            self._poisoned = frozenset()
            for follower in self._followers:
                follower.reset()
        own = self._side(view)
        calls = _hypercalls(view) if view.op.kind in _OF_THE_GUEST else None
        found: list[Violation] = []
        for follower in self._followers:
            side = follower.step(view, own, calls)
            if side is None:
                continue
            for divergence in compare(view.index, own, side):
                if not divergence.is_explained:
                    message = (
                        f"{divergence.hosts[0]}: {divergence.values[0]}; "
                        f"{divergence.hosts[1]}: {divergence.values[1]}"
                    )
                    name = f"{self.name}-{divergence.aspect}"
                    found.append(Violation(name, view.index, message))
        return found

    def _side(self, view: OpView) -> Side:
        if self._traits is None:
            self._traits = traits_of(self._label, view.host)
        if view.op.kind is OpKind.HOST_POISON_PAGE:
            self._poisoned |= {view.op.arguments[0]}
        return Side(
            traits=self._traits,
            op=view.op,
            exits=tuple(view.exits),
            outcome=view.outcome,
            before=view.host_before.copy(),
            after=view.host.private_map().copy(),
            ready_before=view.ready_before,
            ready=view.host.migration_ready,
            is_stopped=False,
            poisoned=self._poisoned,
        )
