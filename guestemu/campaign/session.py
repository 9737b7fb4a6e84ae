# SPDX-License-Identifier: GPL-2.0-or-later
"""One process's part of a campaign: runs inputs, keeps what is new, files what is wrong.

Engines choose inputs and call `execute`; everything else is the same for all of them. What is new
goes into the journal first (journal.py), so that a session can die at any moment.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Final

import msgspec

from guestemu.abi.errors import MissingError
from guestemu.campaign.bounds import Bounds
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.filing import Filing, Shelf
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.programs import IN_A_ROW, ProgramSet
from guestemu.campaign.store import Store
from guestemu.campaign.targets import Target
from guestemu.campaign.triage.identify import digest_of
from guestemu.checks.base import Violation
from guestemu.checks.progress import ProgressCheck
from guestemu.host.base import Host
from guestemu.host.plugin_guard import PluginHost
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.scout import Scout, may_end_process
from guestemu.runner.testbed import HOST_FAILED

LENGTH_SIZE: Final = 4
"""Bytes of the length in front of the input in `Session.current`."""

APART: Final = 1 << 31
"""Bit of the length: other programs ran, to identify what the input shows."""

_GRACE_S: Final = 2.0
"""How long after its end a session may go on to identify what it met last."""

_ENDED_ONCE: Final = "host: the process ended once, and not when the program ran again"
_ONCE: Final = "host: an answer or the record was wrong once, and right when the program ran again"

_BEFORE: Final = 4
"""Programs that ran before one whose violation does not show again, to look for it behind them."""

_VM_RESET: Final = Op(OpKind.VM_RESET, ())

_ASIDE: Final = 0.5
"""Of a campaign with an end by the clock the part that programs which go wrong may take, beside the
one that is looked at."""

_CLOCK_MASK: Final = 63
"""The clock is read every 64 executions."""


class Plan(msgspec.Struct, frozen=True):
    """What a session does: `execs` and `seconds` end it (None: no limit), `seed` decides its
    random choices, `until_finding` is the number of new findings that end it, `report_every` is the
    time between two reports in seconds, `is_shared` says that other sessions feed the same corpus.
    The session is number `index` of `jobs`; `bounds` are the exhaustive engine's. `seconds` count
    from `began`, of `time.monotonic`, or from the session's start."""

    target: Target
    header: Header
    faults: bool = False
    seed: int = 0
    execs: int | None = None
    seconds: float | None = None
    report_every: float = 0.5
    is_shared: bool = False
    index: int = 0
    jobs: int = 1
    bounds: Bounds = Bounds()
    until_finding: int | None = None
    began: float | None = None


class Report(msgspec.Struct, frozen=True):
    """Figures of one session so far; times in seconds since its start; `lengths[n]` counts the
    programs of n ops; `space` is the number of programs that the engine means to run in all
    sessions (exhaustive only), `is_exhausted` that this session has run its share; `distinct` of
    the executions ran a program that had not run before."""

    executions: int
    seconds: float
    guest_blocks: int
    model_states: int
    last_new_s: float
    new_inputs: int
    lengths: list[int]
    findings: list[FindingCount]
    unstable: list[str]
    is_final: bool = False
    near_misses: int = 0
    space: int | None = None
    is_exhausted: bool = False
    distinct: int = 0


def add_lengths(parts: Iterable[Sequence[int]]) -> list[int]:
    """The sum of several counts of programs by their number of ops."""
    counts: list[int] = []
    for part in parts:
        counts += [0] * (len(part) - len(counts))
        for length, count in enumerate(part):
            counts[length] += count
    return counts


def median_length(counts: Sequence[int]) -> int:
    """The median number of ops of programs of which `counts[n]` have n ops, 0 for none."""
    left = (sum(counts) + 1) // 2
    for length, count in enumerate(counts):
        left -= count
        if left <= 0:
            return length
    return 0


class SessionOver(Exception):
    """Raised by `Session.execute` when a limit is reached or `Session.stop` was called."""


class Session:
    """See the module's docstring. `report` is called now and then and once at the end.
    `current`, if set, holds the input that runs (its length in LENGTH_SIZE bytes, then the bytes)
    for the supervisor, which reads it after this process has died.

    `host` replaces the one named in the header (for tests), `build` makes another executor than the
    standard one; without a `store` nothing is written. `may_be_native` is False in a subclass whose
    `execute` does more: machine code does not call it.
    """

    may_be_native: ClassVar[bool] = True

    def __init__(
        self,
        plan: Plan,
        store: Store | None = None,
        report: Callable[[Report], None] | None = None,
        host: Host | None = None,
        build: Callable[[Feedback], Executor] | None = None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.kinds = plan.target.kinds_with(plan.faults, plan.header.layout)
        self.feedback = Feedback()
        if build is None:
            self.executor = Executor(plan.target, plan.header, self.kinds, self.feedback, host)
        else:
            self.executor = build(self.feedback)
        plugin = self.executor.testbed.host
        if isinstance(plugin, PluginHost):
            plugin.count_blocks(self.feedback.host_blocks)
        self.executions = 0
        self.distinct = 0
        """Executions whose program had not run before, as far as `ProgramSet` remembers."""
        self.skips_known = False
        """Inputs that decode to a program which already ran do not count as executions (set by
        engines that do not need to see an input twice)."""
        self.gained: Callable[[], None] | None = None
        """Called where an input covered something new."""
        self._programs = ProgramSet()
        self._skipped = 0
        self.current: mmap.mmap | None = None
        self._mark = 0
        self._before: tuple[tuple[Op, ...], ...] = ()
        """The last programs that `execute` ran."""
        self.violations: list[Violation] = []
        """Those of the last input."""
        self.has_run = False
        """Whether the last input ran: one that is known, or that killed a worker, does not."""
        self.lengths = array("Q", bytes(8 * (plan.target.max_ops + 1)))
        """How many programs had each number of ops."""
        self.space: int | None = None
        self.is_exhausted = False
        self._shelf = None if store is None else Shelf(store, plan.index)
        self.deadly = frozenset() if store is None else store.deadly_inputs()
        if self.deadly and may_end_process(plugin):
            self.executor.testbed.scout = Scout(self.executor.testbed)
            self.deadly = frozenset()  # what a user's code does there is a finding
        self._aside = 0.0
        self._filing = Filing(self.executor, self._shelf, self._elapsed)
        is_bounded = plan.until_finding is not None
        self._known = store.known_findings() if store and is_bounded else frozenset()
        self._report = report
        self._new_inputs = 0
        self._last_new = 0.0
        self._start = time.monotonic()
        self._next_report = self._start + plan.report_every
        self._deadline = None if plan.seconds is None else self._end(plan.seconds)
        self._filing.book.deadline = self._deadline and self._deadline + _GRACE_S
        self._limit = plan.execs
        self._is_stopped = False

    def _end(self, seconds: float) -> float:
        """When a session of so many seconds ends. The start of its process is among them, up to
        half: a machine with much else to do takes seconds to start Python and to boot the guest."""
        began = self.plan.began
        if began is None:
            return self._start + seconds
        return max(began + seconds, self._start + seconds / 2)

    def stop(self) -> None:
        """The next `execute` ends the session (safe in a signal handler)."""
        self._is_stopped = True

    def execute(self, data: bytes, before: Sequence[bytes] | None = None) -> bool:
        """Runs one input (see `skips_known`); whether it covered something new. Raises
        `SessionOver` instead of running when the session is over. The caller clears the counters
        before, if libFuzzer does not. `before` are inputs that other code ran just before; without
        them those count that this method ran."""
        if self._is_stopped or self.executions == self._limit:
            raise SessionOver
        if not self.executions & _CLOCK_MASK:
            self._look_at_clock()
        executor = self.executor
        ops = executor.decode(data)
        self.violations = []
        self.has_run = False
        is_new = self._programs.add(tuple(map(executor.plain, ops)))
        if not is_new and self.skips_known and self._skipped < IN_A_ROW:
            self._skipped += 1
            return False
        self._skipped = 0
        self.executions += 1
        if len(data) > self.executor.max_size:
            data = data[: self.executor.max_size]  # of another target, or written by a user
        if self.deadly and data in self.deadly:
            return False
        self.distinct += is_new
        self.has_run = True
        if self.current is not None:
            self._note_current(data)
        self.lengths[len(ops)] += 1
        self.violations = violations = executor.run(ops)
        if violations and any(found.check == ProgressCheck.name for found in violations):
            self.feedback.clear()  # no engine keeps and mutates a program that uses up its budget
        is_new = self.keep_if_new(data)
        if violations:
            with self._apart():
                self._filing.file(ops, violations, self._ran(before), is_new)
            self._count_findings()
        if before is None:
            self._before = (*self._before[1 - _BEFORE :], ops)
        return is_new

    def _ran(self, before: Sequence[bytes] | None) -> tuple[tuple[Op, ...], ...]:
        if before is None:
            return self._before
        return tuple(map(self.executor.decode, before[-_BEFORE:]))

    def confirm(self, data: bytes, before: Sequence[bytes] = ()) -> None:
        """Files `data`, which ran last and was found wrong by machine code just before, unless it
        was also found wrong in Python: what a host does then depends on more than the program,
        perhaps on `before`, the inputs that ran just before.
        """
        ops = self.executor.decode(data)
        if self.violations or not ops or not self.has_run:
            return
        left = self.executor.run((_VM_RESET,))
        with self._apart():
            if left:
                self._filing.file((_VM_RESET,), left)
            elif not self._filing.file_behind(self._ran(before), ops):
                self.file_once(data, "results", _ONCE, "K3-c")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around a run of what machine code is not content with."""
        start, filed = time.monotonic(), self._aside
        yield
        self._aside = filed + time.monotonic() - start

    def pass_over(self, data: bytes) -> bool:
        """Counts `data`, which machine code ran and was not content with, where such programs have
        taken their part of the time, and says so: they are not looked at, so that a defect which is
        easily met leaves the others half of a campaign. Raises `SessionOver`."""
        if self._deadline is None or self._aside <= _ASIDE * (time.monotonic() - self._start):
            return False
        if self._is_stopped or self.executions == self._limit:
            raise SessionOver
        if not self.executions & _CLOCK_MASK:
            self._look_at_clock()
        self.executions += 1
        self.lengths[len(self.executor.decode(data))] += 1
        return True

    def look_again(self, data: bytes, before: bytes | None = None) -> bool:
        """Runs `data` in Python, which machine code ran and was not content with; whether something
        is wrong with it, which is filed. With the input that ran `before` it was certainly wrong:
        what does not show even behind that one depends on more than the program. No execution.
        """
        if self.current is not None:
            self._note_current(data)
        ops = self.executor.decode(data)
        with self._apart():
            violations = self.executor.run(ops)
            left = () if before is None else (self.executor.decode(before),)
            if not violations and left:
                over_a_reset = (*left[0], _VM_RESET, *ops)
                violations = self.executor.run(over_a_reset)
                ops = over_a_reset if violations else ops
            if violations:
                self._filing.file(ops, violations, left)
            elif before is not None:
                self.file_once(data, "results", _ONCE, "K3-c")
        self._count_findings()
        return bool(violations)

    def file_death(self, data: bytes, how: str) -> None:
        """Files `data`, which ended a worker in the code of a user's host; `how` if it does not do
        that again."""
        if self.current is not None:
            self._note_current(data)
        with self._apart():
            ops = self.executor.decode(data)
            violations = self.executor.run(ops)
            if violations:
                self._filing.file(ops, violations)
            elif ops:
                self.file_once(data, HOST_FAILED, f"{_ENDED_ONCE} ({how})")
        self._count_findings()

    def file_once(self, data: bytes, check: str, message: str, fact: str = "") -> None:
        """Files what was met with `data` and is not seen again."""
        ops = self.executor.decode(data)
        self._filing.file_unstable(ops, Violation(check, len(ops) - 1, message, fact))

    def keep_if_new(self, data: bytes) -> bool:
        """Keeps `data`, which ran last, if it covered something new; whether it did."""
        if not self.feedback.take():
            return False
        if self.gained is not None:
            self.gained()
        self._new_inputs += 1
        self._last_new = self._elapsed()
        if self._shelf is not None:
            self._shelf.note_input(data)
        return True

    def allow(self) -> int:
        """How many executions may pass before the session is asked again, while other code runs
        inputs and adds them to `executions` and `lengths`. Raises `SessionOver`."""
        if self._is_stopped or self.executions == self._limit:
            raise SessionOver
        self._look_at_clock()
        every = _CLOCK_MASK + 1
        return every if self._limit is None else min(every, self._limit - self.executions)

    def recover(self) -> None:
        """Files what earlier sessions met and had no time to file."""

        def begin(data: bytes) -> bool:
            if self.current is not None:
                self._note_current(data)
            return data not in self.deadly

        with self._apart():
            self._filing.recover(self.plan.index, self.plan.jobs, begin)
        self._count_findings()

    def _count_findings(self) -> None:
        """Stops at the last finding that is wanted (see `Plan.until_finding`)."""
        wanted = self.plan.until_finding
        if wanted is not None:
            found = {digest_of(key) for key in self._filing.book.findings}
            self._is_stopped |= len(found - self._known) >= wanted

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Runs inside do not count as coverage; the supervisor hears of them (minimising takes
        long on slow guests)."""
        start = time.monotonic()
        counters = self.feedback.save()
        self.executor.heartbeat = lambda: self._beat(time.monotonic())
        self._mark_current(APART)
        yield
        self._aside += time.monotonic() - start
        self._mark_current(0)
        self.executor.heartbeat = None
        self.feedback.load(counters)

    def note_position(self, space: str, position: int) -> None:
        """See `PositionNoted`."""
        if self._shelf is not None:
            self._shelf.note_position(space, position)

    def last_position(self, space: str) -> int:
        """The last one noted by any session of this number, 0 if none."""
        return 0 if self._shelf is None else self._shelf.last_position(space)

    def _note_current(self, data: bytes) -> None:
        assert self.current is not None
        size = (len(data) | self._mark).to_bytes(LENGTH_SIZE, "little")
        self.current[: len(data) + LENGTH_SIZE] = size + data

    def _mark_current(self, mark: int) -> None:
        self._mark = mark
        if self.current is not None:
            size = int.from_bytes(self.current[:LENGTH_SIZE], "little") & ~APART | mark
            self.current[:LENGTH_SIZE] = size.to_bytes(LENGTH_SIZE, "little")

    def finish(self) -> Report:
        """The last report; sends it."""
        final = self.make_report(is_final=True)
        if self._report is not None:
            self._report(final)
        return final

    def make_report(self, is_final: bool = False) -> Report:
        """The figures now."""
        return Report(
            executions=self.executions,
            seconds=self._elapsed(),
            guest_blocks=self.feedback.guest_blocks,
            model_states=self.feedback.model_states,
            last_new_s=self._last_new,
            new_inputs=self._new_inputs,
            lengths=list(self.lengths),
            findings=list(self._filing.book.findings.values()),
            unstable=self._filing.unstable,
            is_final=is_final,
            near_misses=self.feedback.near_misses,
            space=self.space,
            is_exhausted=self.is_exhausted,
            distinct=self.distinct,
        )

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._start, 3)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise SessionOver
        if self.store is not None and self.store.reserve.is_used:
            raise MissingError(
                f"{self.store.root}: the disk is full; what was found is saved. Make room and go "
                "on with --resume"
            )
        self._beat(now)

    def _beat(self, now: float) -> None:
        """Tells the supervisor that this session lives, when it is time."""
        if self._report is not None and now >= self._next_report:
            self._next_report = now + self.plan.report_every
            self._report(self.make_report())
