# SPDX-License-Identifier: GPL-2.0-or-later
"""The testbed: one guest, one host, the checks, and a program that runs in it.

A testbed is made once for a configuration and then runs any number of programs; each starts from
the same state (`reset`), so a program's outcome depends on nothing but the program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, Gva, to_signed
from guestemu.abi.errors import HostFailedError
from guestemu.checks import standard_checks
from guestemu.checks.base import CONVERSION_KINDS, Check, OpView, Violation
from guestemu.checks.cache import CacheCheck
from guestemu.checks.check_set import CheckSet
from guestemu.checks.first_state import first_state
from guestemu.checks.results import answers_left
from guestemu.events.base import Event
from guestemu.events.exits import AnsweredExit, exits_of
from guestemu.events.memory import LeafChange
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.host.base import Host
from guestemu.host.kvm.guest_memory import Slot
from guestemu.host.kvm.host import MergedHost
from guestemu.host.marked_bits import MarkedBits
from guestemu.host.permission import Permissions
from guestemu.host.registry import load_host
from guestemu.host.userspace.base import VmStopped
from guestemu.machine.cache import CachedRam
from guestemu.program.layout import HOLES, PLUG, RAM, ROM, parts_of
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.program.program import Header, Program
from guestemu.runner.dma_slots import DmaSlots
from guestemu.runner.exit_recorder import ExitRecorder, in_order
from guestemu.runner.migration_operations import DESTINATION_KEY, MakePair, MigrationOperations
from guestemu.runner.operations import operations_of
from guestemu.runner.told import tell_exits

if TYPE_CHECKING:
    from guestemu.runner.scout import Scout

HOST_FAILED: Final = "host-failed"
"""The name of the violation that a user's host commits by raising, by an answer of a wrong type
or range, by not returning, and by ending its process."""

TIME_UP: Final = "time-up"
"""The name of the violation that a program commits by taking too long."""


_NOTHING: Final = CallOutcome(0)
_TO_PRIVATE: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_ENCRYPTED})
_TD_FAULTS: Final = frozenset({OpKind.PENDING_EVENT, OpKind.FAIL_ACCEPT})
_DMA: Final = frozenset(
    {OpKind.DMA_ALLOC, OpKind.DMA_FREE, OpKind.DMA_ALLOC_PAGES, OpKind.DMA_FREE_PAGES}
)
_BY_SIZE: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})


class OpResult(msgspec.Struct, frozen=True):
    """What one operation did: its outcome, and everything that happened, in the order of time."""

    op: Op
    outcome: CallOutcome
    events: tuple[Event, ...]

    @property
    def exits(self) -> tuple[AnsweredExit, ...]:
        """The exits that were answered."""
        return tuple(exits_of(self.events))

    @property
    def flips(self) -> tuple[LeafChange, ...]:
        """The leaves that changed."""
        return tuple(event for event in self.events if isinstance(event, LeafChange))


class Outcome(msgspec.Struct, frozen=True):
    """A whole run."""

    results: tuple[OpResult, ...]
    violations: tuple[Violation, ...]

    @property
    def is_ok(self) -> bool:
        """Nothing was violated."""
        return not self.violations


class Testbed:
    """One guest and one host with checks between them.

    `observe` is called after every operation with what the checks saw (for coverage feedback).
    `scout`, if set, runs each program before it runs here; `try_out` asks it.
    """

    __test__ = False

    def __init__(
        self,
        guest: Guest,
        host: Host,
        checks: Iterable[Check] | None = None,
        destination: MakePair | None = None,
    ) -> None:
        self.guest = guest
        self.host = host
        if checks is None:
            is_cached = isinstance(guest.machine.ram, CachedRam)
            checks = (*standard_checks(host), *((CacheCheck(),) if is_cached else ()))
        self._checks = CheckSet(checks)
        self.observe: Callable[[OpView], None] | None = None
        self.scout: Scout | None = None
        self._frames = guest.machine.config.frames
        self._host_before = bitarray(endian="little")
        self._failure: HostFailedError | None = None
        self._set_up(self.host.reset)
        guest.use_kvm(_kvm_of(host), host.repaired)
        guest.use_lie(host.lie)
        self.recorder = ExitRecorder(host, guest)
        self.recorder.attach()
        self._machine = guest.machine
        self._has_faults = False
        self._fault_split = False
        self._answers = (0, 0)
        self.slots = DmaSlots()
        self._migration = MigrationOperations(self, destination)
        self._is_judged_new = host.contract_state and not guest.boot_exits
        self._tables: dict[int, tuple[Host, Mapping[OpKind, Callable[[Op], CallOutcome]]]] = {}
        self._do = self._dispatch()

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks, in the order in which they are asked."""
        return self._checks.checks

    @checks.setter
    def checks(self, checks: tuple[Check, ...]) -> None:
        self._checks = CheckSet(checks)

    @property
    def migration(self) -> MigrationOperations:
        """The migration of the present run: how frames were sent, the guest that was left."""
        return self._migration

    def watch(self, *extra: Check) -> None:
        """Asks `extra` after every operation, besides the others."""
        self._checks.watch(*extra)

    def move_to(self, guest: Guest, host: Host) -> None:
        """The next operations run on `guest` over `host`; answers still ordered stay ordered."""
        self.guest = guest
        self.host = host
        self._machine = guest.machine
        guest.use_kvm(_kvm_of(host), host.repaired)
        guest.use_lie(host.lie)
        self.recorder = ExitRecorder(host, guest)
        self.recorder.attach()
        self._do = self._dispatch()
        if self._answers[1]:
            host.inject_answer(*self._answers)

    def close(self) -> None:
        """Frees the guest, and the destination of a migration."""
        if self._migration.is_on:
            self._migration.reset()
        self._migration.close()
        self.guest.close()
        if self.scout is not None:
            self.scout.close()

    def try_out(self, ops: Iterable[Op], is_new: bool = False) -> bool:
        """Whether `ops` may run here; see `Scout.try_out`."""
        return self.scout is None or self.scout.try_out(ops, is_new)

    def reset(self) -> None:
        """Guest and host back to their first state. A user's host that fails at it fails the first
        operation."""
        if self._migration.is_on:
            self._migration.reset()
        self.guest.reset()
        self._set_up(self.host.restore)
        if self.guest.boot_exits:
            self.recorder.attach()
        self.slots.clear()
        self._answers = (0, 0)
        self._fault_split = False
        self._has_faults = False

    def _set_up(self, restore: Callable[[int], None]) -> None:
        """The host of a VM that has just booted."""
        self._failure = None
        self.host.take_back()
        try:
            restore(self._frames)
            tell_exits(self.host, self.guest.boot_exits, self.guest.machine.current)
        except HostFailedError as error:
            self._failure = error

    def run(self, ops: Iterable[Op]) -> Outcome:
        """Resets and runs `ops`."""
        self.reset()
        results: list[OpResult] = []
        violations: list[Violation] = []
        for index, op in enumerate(ops):
            self.step(index, op, results, violations)
        return Outcome(tuple(results), tuple(violations))

    def step(
        self, index: int, op: Op, results: list[OpResult] | None, violations: list[Violation]
    ) -> None:
        """Runs one operation, appends its result (if it is wanted) and what the checks say.

        Raises `VmStopped` where the host's user space ends the VM, also after a user's host failed,
        which is a violation of `HOST_FAILED`.
        """
        view: OpView | None = None
        try:
            view = self._begin(index, op, self._range(op))
            if self._failure is not None:
                raise self._failure
            if not index and self._is_judged_new:
                violations += first_state(index, self.host.private_map(), view.ready_before)
            self._carry_out(view, results, violations)
        except HostFailedError as error:
            self._machine.hooks.clear()
            violations.append(Violation(HOST_FAILED, index, str(error)))
            if self.observe is not None:
                with contextlib.suppress(HostFailedError):  # of a host that says nothing any more
                    self.observe(view or self._before_any(index, op))
            raise VmStopped(f"the host failed: {error}") from error

    def _carry_out(
        self, view: OpView, results: list[OpResult] | None, violations: list[Violation]
    ) -> None:
        op = view.op
        kind = op.kind
        if op.vcpu != self._machine.current.index:
            self.guest.activate(op.vcpu)
        view.outcome = outcome = self._do[kind](op)
        self._collect(view)
        if self._has_faults or kind in _TD_FAULTS:
            self._has_faults = True
            self._end_faults(op, view)
        if kind in _DMA:
            view.free_frames = self.guest.free_frames()
        if results is not None:
            results.append(OpResult(op, outcome, tuple(view.events)))
        if kind is OpKind.VM_RESET and self._is_judged_new:
            violations += first_state(
                view.index, self.host.private_map(), self.host.migration_ready
            )
        violations += self._checks.after(view)
        if self.observe is not None:
            self.observe(view)

    def convert(
        self, index: int, gfn: Gfn, pages: int, private: bool, free: bitarray | None = None
    ) -> tuple[OpResult, tuple[Violation, ...]]:
        """The guest's set_memory_encrypted (`private`) or set_memory_decrypted on direct-mapped
        frames, outside of any program; every check judges it as an operation of index `index`.

        `free` are the frames in the guest's page allocator at that moment, one bit each, if the
        caller knows them. The result's op has no page: the frames may be in no region.
        """
        gva = Gva(self.guest.direct_map + (gfn << PAGE_SHIFT))

        def call() -> CallOutcome:
            if private:
                return self.guest.set_memory_encrypted(gva, pages)
            return self.guest.set_memory_decrypted(gva, pages)

        return self.judge(index, private, call, lambda _outcome: (gfn, pages), free)

    def judge(
        self,
        index: int,
        private: bool,
        call: Callable[[], CallOutcome],
        frames: Callable[[CallOutcome], tuple[int, int] | None],
        free: bitarray | None = None,
    ) -> tuple[OpResult, tuple[Violation, ...]]:
        """Any `call` into the guest that converts frames to `private`, judged as `convert` is.

        `frames` tells from its outcome which were converted (None: it converted nothing that can be
        judged); the result's value is then taken as 0.
        """
        kind = OpKind.SET_MEMORY_ENCRYPTED if private else OpKind.SET_MEMORY_DECRYPTED
        op = Op(kind, (0, 0))
        view = self._begin(index, op, None)
        outcome = call()
        self._collect(view)
        view.frames = frames(outcome)
        is_done = outcome.value is not None and outcome.value >= 0
        view.outcome = _NOTHING if is_done else outcome
        view.free_frames = free
        violations = tuple(found for check in self.checks for found in check.after(view))
        return OpResult(op, outcome, tuple(view.events)), violations

    def _begin(self, index: int, op: Op, frames: tuple[int, int] | None) -> OpView:
        """The view of an operation that is about to start; its events go into fresh lists."""
        host = self.host
        leaf_map = self.guest.leaf_map
        recorder = self.recorder
        recorder.records = []
        recorder.emitted = []
        host_before, now = self._host_before, host.private_map()
        if isinstance(now, MarkedBits):
            host_before = now.begin()
        elif len(host_before) == len(now):
            host_before[:] = now  # in the memory that it has: new memory costs more than the copy
        else:
            host_before = self._host_before = now.copy()
        return OpView(  # by position: names would cost half a microsecond for every operation
            index,
            op,
            _NOTHING,
            self.guest,
            host,
            recorder.records,
            [],
            host_before,
            leaf_map.begin(),
            len(leaf_map.moved),
            frames,
            op.kind in _TO_PRIVATE,
            op.region,
            host.migration_ready,
            self._answers,
            None,
            (),
            recorder.emitted,
        )

    def _before_any(self, index: int, op: Op) -> OpView:
        """The view of an operation that the host did not live to see."""
        return OpView(
            index=index,
            op=op,
            outcome=_NOTHING,
            guest=self.guest,
            host=self.host,
            exits=[],
            flips=[],
            host_before=bitarray(),
            private_before=self.guest.leaf_map.begin(),
            moved_before=len(self.guest.leaf_map.moved),
            frames=None,
            wants_private=False,
            region=op.region,
            ready_before=False,
            injected=(0, 0),
            free_frames=None,
        )

    def _collect(self, view: OpView) -> None:
        """Puts everything that happened in the order of time."""
        events: Sequence[Event] = view.exits
        if view.emitted:
            events = in_order(view.exits, view.emitted)
        view.events, changes = self.guest.leaf_map.among(events)
        view.flips += changes

    def _end_faults(self, op: Op, view: OpView) -> None:
        value, count = self._answers
        if count and op.kind is not OpKind.ANSWER:
            self._answers = (value, answers_left(value, count, view.exits))
        td = self.guest.td
        if td is not None and not SPECS[op.kind].is_fault:
            td.accept_error = None
            td.pending_events = 0
        if self._fault_split and op.kind is not OpKind.FAIL_SPLIT:
            self._fault_split = False
            self.guest.clear_faults()

    def _range(self, op: Op) -> tuple[int, int] | None:
        """First frame and number of frames that a conversion is asked for."""
        if op.kind not in CONVERSION_KINDS:
            return None
        gpa = self.guest.gpa(op.region, op.page)
        if op.kind in _BY_SIZE:
            size, offset = op.arguments
            first = gpa + offset >> 12
            end = gpa + offset + size + 0xFFF >> 12 if size else first
            return first, end - first
        pages = to_signed(op.arguments[0], 32)
        return gpa >> 12, max(pages, 0)

    # Operations -------------------------------------------------------------------------------

    def _dispatch(self) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
        """What each kind of operation does on the present host, kept for when it is here again: a
        migration goes to one and comes back with every program."""
        host = self.host
        kept = self._tables.get(id(host))
        if kept is None or kept[0] is not host:
            table = {
                **operations_of(self),
                **self._migration.operations(),
                OpKind.ANSWER: self._answer,
                OpKind.FAIL_SPLIT: self._fail_split,
                OpKind.FAIL_MSR: self._fail_msr,
                OpKind.VM_RESET: self._vm_reset,
            }
            kept = self._tables[id(host)] = (host, table)
        return kept[1]

    def _vm_reset(self, op: Op) -> CallOutcome:
        self.reset()
        return _NOTHING

    def _answer(self, op: Op) -> CallOutcome:
        value, count = op.arguments
        self.host.inject_answer(value, count)
        self._answers = (value, count)
        self._has_faults = True
        return _NOTHING

    def _fail_split(self, op: Op) -> CallOutcome:
        self.guest.fail_split(op.arguments[0])
        self._fault_split = True
        self._has_faults = True
        return _NOTHING

    def _fail_msr(self, op: Op) -> CallOutcome:
        self.host.inject_msr_error(op.arguments[0])
        return _NOTHING


def belief_of(host: Host) -> tuple[bitarray, bool]:
    """A copy of the host's map and whether it allows a migration; an empty map and False where a
    user's host fails at saying so."""
    try:
        return host.private_map().copy(), host.migration_ready
    except HostFailedError:
        return bitarray(), False


def _kvm_of(host: Host) -> str:
    """The kernel of the KVM below the guest; empty where the host is of no particular one."""
    if host.psc_kernel:
        return host.psc_kernel
    return host.kernel.name if isinstance(host, MergedHost) else ""


def settings_of(header: Header) -> GuestSettings:
    """What a program's header says about its guest."""
    return GuestSettings(
        guest=header.guest,
        cbit=header.cbit,
        memory=header.memory,
        vcpus=header.vcpus,
        budget=header.budget,
        coherent=header.coherent,
        sev=header.sev.value,
        cache=header.cache,
        cache_seed=header.seed,
    )


def host_of(header: Header) -> Host:
    """The host that `header` names. Raises `InputError`, also for code that nothing allowed."""
    host = load_host(header.host, header.switches, header.plugin)
    host.describe_vm(slots_of(header), header.vcpus)
    host.pluggable = pluggable_of(header)
    return host


def slots_of(header: Header) -> tuple[Slot, ...]:
    """The memory slots that the header's layout says, their parts of one guest_memfd behind each
    other; empty without a layout."""
    found: list[Slot] = []
    offset = 0
    for part in parts_of(header.layout, header.memory) if header.layout else ():
        if part.kind not in HOLES:
            has_guest_memfd = part.kind == RAM
            found.append(
                Slot(
                    part.gpa,
                    part.size,
                    memfd_offset=offset if has_guest_memfd else 0,
                    has_guest_memfd=has_guest_memfd,
                    is_read_only=part.kind == ROM,
                )
            )
            offset += part.size if has_guest_memfd else 0
    return tuple(found)


def pluggable_of(header: Header) -> tuple[Slot, ...]:
    """The slots that can be plugged by the header's layout, each with a guest_memfd of its own."""
    parts = parts_of(header.layout, header.memory) if header.layout else ()
    return tuple(Slot(part.gpa, part.size) for part in parts if part.kind == PLUG)


def with_plugin(program: Program, permissions: Permissions, path: Path) -> Program:
    """`program`, read from `path`, with the place of the code that its header names, if any.

    Raises `InputError` where `permissions` do not allow it.
    """
    plugin = permissions.find(program.header.host, path)
    if not plugin:
        return program
    header = msgspec.structs.replace(program.header, plugin=plugin)
    return msgspec.structs.replace(program, header=header)


def build_testbed(header: Header, host: Host | None = None) -> Testbed:
    """Boots the guest and loads the host that `header` names (or takes `host`).

    Raises `InputError` for a configuration that cannot be.
    """
    settings = settings_of(header)
    if settings.guest.startswith(("linux:", "userland:")) or host is not None:
        return Testbed(load_guest(settings), host or host_of(header))

    def destination() -> tuple[Guest, Host]:
        moved = msgspec.structs.replace(settings, key=DESTINATION_KEY)
        return load_guest(moved), host_of(header)

    loaded = host_of(header)
    return Testbed(load_guest(settings), loaded, destination=destination)
