# SPDX-License-Identifier: GPL-2.0-or-later
"""A program on several hosts, each with a testbed and a guest of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from guestemu.abi.errors import InputError
from guestemu.checks.base import OpView
from guestemu.events.exits import AnsweredExit
from guestemu.guest.base import CallOutcome
from guestemu.host.permission import named_by_user
from guestemu.machine.watchdog import Watchdog
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, Program
from guestemu.replay.lockstep.compare import Divergence, compare
from guestemu.replay.lockstep.side import Side, Traits, traits_of
from guestemu.report.trace.run import Run, check_program, run_in, seconds_for
from guestemu.runner.testbed import Testbed, belief_of, build_testbed, host_of


class HostChoice(msgspec.Struct, frozen=True):
    """One host of a lock-step run: `spec` as in a header, `switches` what is repaired in it,
    `plugin` the path of its code, if it is the user's own."""

    spec: str
    switches: tuple[str, ...] = ()
    plugin: str = ""

    @property
    def label(self) -> str:
        """Its name in divergences: the spec, with the repairs behind a `+` each."""
        return "+".join((self.spec, *self.switches))

    def header(self, header: Header) -> Header:
        """`header` with this host in place of its own."""
        return msgspec.structs.replace(
            header, host=self.spec, switches=self.switches, plugin=self.plugin
        )


class LockstepRun(msgspec.Struct, frozen=True):
    """The run on each host, in the order given, and where the others differ from the first."""

    runs: tuple[Run, ...]
    divergences: tuple[Divergence, ...]


def choices_of(specs: str, header: Header) -> tuple[HostChoice, ...]:
    """The hosts of `A,B,...`; repairs of the header belong to the header's own host.

    Raises `InputError` for an empty name, one host only and a host named twice.
    """
    names = specs.split(",")
    if len(names) < 2 or not all(names):
        raise InputError(f"--host {specs}: lock-step takes two hosts or more, such as A,B")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--host {specs}: {name} is named twice; name each host once")
    return tuple(_choice(name, header) for name in names)


def choices_beside(header: Header) -> tuple[HostChoice, ...]:
    """The header's host, and those beside it."""
    own = HostChoice(header.host, header.switches, header.plugin)
    return own, *(HostChoice(name) for name in header.beside)


def _choice(name: str, header: Header) -> HostChoice:
    spec, plugin = named_by_user(name)
    return HostChoice(spec, header.switches if spec == header.host else (), plugin)


def run_lockstep(
    program: Program, choices: Sequence[HostChoice], seconds: float | None = None
) -> LockstepRun:
    """Runs `program` on every host of `choices`, for `seconds` of CPU time on each (see `run_in`),
    and compares the others with the first.

    Raises `InputError` for a configuration that cannot be, or an operation a host cannot do.
    """
    recorded = [_record(program, choice, seconds) for choice in choices]
    first = recorded[0][1]
    divergences = [
        divergence for _, sides in recorded[1:] for divergence in compare_sides(first, sides)
    ]
    divergences.sort(key=lambda divergence: divergence.op)
    return LockstepRun(tuple(run for run, _ in recorded), tuple(divergences))


def compare_sides(one: Iterable[Side], other: Iterable[Side]) -> list[Divergence]:
    """The divergences of two whole runs; behind a VM that was stopped nothing is compared."""
    return [
        divergence
        for index, (left, right) in enumerate(zip(one, other, strict=False))
        for divergence in compare(index, left, right)
    ]


def _record(program: Program, choice: HostChoice, seconds: float | None) -> tuple[Run, list[Side]]:
    header = choice.header(program.header)
    program = msgspec.structs.replace(program, header=header, expectations=())
    check_program(program)
    limit = seconds_for(header) if seconds is None else seconds
    testbed = build_testbed(header, host_of(header))
    try:
        with Watchdog(None, limit):  # what is asked of a host outside of the run
            watcher = Watcher(testbed, traits_of(choice.label, testbed.host))
            watcher.start()
        run = run_in(testbed, program, limit)
        if run.stop is not None:
            with Watchdog(None, limit):
                watcher.stopped(program.ops[run.stop.op])
    finally:
        testbed.guest.machine.close()
    return run, watcher.sides


class Watcher:
    """Collects the sides of one testbed's operations; call `start` behind each reset."""

    def __init__(self, testbed: Testbed, traits: Traits) -> None:
        self._testbed = testbed
        self._traits = traits
        self.sides: list[Side] = []
        testbed.observe = self._observe

    def start(self) -> None:
        """A program begins: the testbed was reset."""
        self.sides = []
        self._map, self._ready = belief_of(self._testbed.host)
        self._poisoned: frozenset[int] = frozenset()

    def _observe(self, view: OpView) -> None:
        self.add(view.op, tuple(view.exits), view.outcome)

    def stopped(self, op: Op) -> None:
        """The VM stopped during `op`."""
        self.add(op, tuple(self._testbed.recorder.records), None)

    def add(self, op: Op, exits: tuple[AnsweredExit, ...], outcome: CallOutcome | None) -> None:
        """`op` ended with `outcome` (None: the VM stopped), and the host answered `exits`."""
        if op.kind is OpKind.HOST_POISON_PAGE:
            self._poisoned |= {op.arguments[0]}
        after, ready = belief_of(self._testbed.host)
        side = Side(
            traits=self._traits,
            op=op,
            exits=exits,
            outcome=CallOutcome(None) if outcome is None else outcome,
            before=self._map,
            after=after,
            ready_before=self._ready,
            ready=ready,
            is_stopped=outcome is None,
            poisoned=self._poisoned,
        )
        self.sides.append(side)
        self._map, self._ready = side.after, side.ready
