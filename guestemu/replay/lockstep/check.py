# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-step as a check of a campaign: other hosts follow the program that is being run.

Only divergences that no known difference explains are violations: the postings differ in dozens of
known ways, which are rows of `known.KNOWN` and not findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from guestemu.checks.base import OpView, Violation
from guestemu.host.base import Host
from guestemu.host.userspace.base import VmStopped
from guestemu.program.ops import OpKind
from guestemu.program.program import Header
from guestemu.replay.lockstep.compare import compare
from guestemu.replay.lockstep.run import HostChoice, Watcher, choices_beside
from guestemu.replay.lockstep.side import Side, Traits, traits_of
from guestemu.runner.testbed import OpResult, Testbed, build_testbed

_MERGED: Final = Header().host


class _Follower:
    """One other host with a testbed and a guest of its own."""

    def __init__(self, header: Header, choice: HostChoice) -> None:
        self._testbed: Testbed = build_testbed(choice.header(header))
        self._testbed.checks = ()
        self._watcher = Watcher(self._testbed, traits_of(choice.label, self._testbed.host))
        self._hooks = self._testbed.guest.machine.hooks
        self._is_stopped = False

    def reset(self) -> None:
        """Before a program."""
        self._testbed.reset()
        self._watcher.start()
        self._is_stopped = False

    def step(self, view: OpView) -> Side | None:
        """The host's side of the operation; None behind the one that stopped its VM. A side says
        nothing of RIP, which need not be right at each load and store."""
        if self._is_stopped:
            return None
        results: list[OpResult] = []
        try:
            with self._hooks.rip_by_block():
                self._testbed.step(view.index, view.op, results, [])
        except VmStopped:
            self._testbed.guest.machine.hooks.clear()
            self._watcher.stopped(view.op)
            self._is_stopped = True
        return self._watcher.sides[-1]


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
        found: list[Violation] = []
        for follower in self._followers:
            side = follower.step(view)
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
