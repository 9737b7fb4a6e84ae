# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes findings of violations: counts them, identifies what is new, saves it.

A violation goes into the journal before it is examined, and its key afterwards, so that the
successor of a session that died can file what was left (`recover`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.campaign.executor import Executor
from guestemu.campaign.findings import NOT_REPRODUCIBLE, FindingBook, signature
from guestemu.campaign.journal import (
    FindingFiled,
    Journal,
    PositionNoted,
    ViolationMet,
    ViolationSettled,
    journal_files,
    read_journals,
    unsettled,
)
from guestemu.campaign.store import Store
from guestemu.campaign.triage.explain import comment_of, run_command, unstable_comment
from guestemu.campaign.triage.identify import Case, Finding
from guestemu.checks.base import Violation
from guestemu.checks.first_state import is_of_new_vm
from guestemu.host.native.host import NativeHost
from guestemu.host.plugin_guard import PluginHost
from guestemu.program.binary import encode_ops
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Program

_LEAVES_BEHIND: Final = (
    (canonical_op(Op(OpKind.HYPERCALL, (KVM_HC_MAP_GPA_RANGE, 0, 1, 0, 0))),),
    (canonical_op(Op(OpKind.WRMSR, (MSR_KVM_MIGRATION_CONTROL, KVM_MIGRATION_READY))),),
)
"""Programs after which a VM is not as it was."""

_VM_RESET: Final = Op(OpKind.VM_RESET, ())

_RUNS_BETWEEN: Final = (0, 1, 2)
"""Runs of a program alone between two runs of it behind others. A host that goes wrong at every
n-th call of its process is not wrong at one place in all of them, or also in the program alone."""

_MOST_VAIN: Final = 4
"""So often what does not show again is looked for behind the programs that ran before."""


class Shelf:
    """The store of a session and its journal. Raises `MissingError` where a disk is full."""

    def __init__(self, store: Store, index: int) -> None:
        self.store = store
        self.journal: Journal = store.open_journal(index)

    def note_input(self, data: bytes) -> None:
        """An input that covered something new."""
        self.store.note_input(self.journal, data)

    def note_position(self, space: str, position: int) -> None:
        """How far the exhaustive engine is."""
        self.store.note(self.journal, PositionNoted(space, position))

    def last_position(self, space: str) -> int:
        """The last one noted, 0 if none."""
        entries = read_journals([self.journal.path])
        noted = [e for e in entries if isinstance(e, PositionNoted) and e.space == space]
        return noted[-1].position if noted else 0

    def met(self, sign: str, ops: tuple[Op, ...], seconds: float) -> None:
        """A violation that is about to be minimised."""
        self.store.note(self.journal, ViolationMet(sign, encode_ops(ops), seconds))

    def settled(self, sign: str) -> None:
        """It is done with."""
        self.store.note(self.journal, ViolationSettled(sign))

    def filed(self, key: str, check: str, seconds: float) -> None:
        """A finding whose program is saved."""
        self.store.note(self.journal, FindingFiled(key, check, seconds))


class Filing:
    """The findings of one session. `elapsed` gives seconds since its start; without a `shelf`
    nothing is written."""

    def __init__(
        self, executor: Executor, shelf: Shelf | None, elapsed: Callable[[], float]
    ) -> None:
        self.book = FindingBook(executor)
        self.unstable: list[str] = []
        self._after_reset: dict[str, str] = {}
        self._executor = executor
        self._shelf = shelf
        self._elapsed = elapsed
        self._done: set[str] = set()
        self._vain = 0

    def file(
        self,
        ops: tuple[Op, ...],
        violations: list[Violation],
        before: Sequence[tuple[Op, ...]] = (),
        is_new: bool = False,
    ) -> None:
        """Counts the program `ops` with its violations, identifies and saves what is new. `before`
        are the programs that ran just before it, the last one last; `is_new` says that it covered
        something new."""
        if is_of_new_vm(violations[0]):
            shown = self._over_a_reset(ops, violations[0])
            if shown is None:
                return
            ops, violations = shown
        sign = signature(violations[0], ops[violations[0].op])
        is_noted = self._shelf is not None and sign not in self._done
        if self._shelf is not None and is_noted:
            self._shelf.met(sign, ops, self._elapsed())  # before anything that takes time
        cases = self.book.meet(ops, violations, is_new)
        if cases is None:
            shown = self._behind(before, ops, sign)
            cases = None if shown is None else self.book.meet(*shown)
        if cases is None:
            self.file_unstable(ops, violations[0])
        elif cases:
            if self._shelf is not None and not is_noted:
                self._shelf.met(sign, ops, self._elapsed())
                is_noted = True
            self._settle(cases)
        self._done.add(sign)
        if self._shelf is not None and is_noted:
            self._shelf.settled(sign)

    def file_behind(self, before: Sequence[tuple[Op, ...]], ops: tuple[Op, ...]) -> bool:
        """Files what shows in `ops` behind the programs `before` and not alone; whether it does."""
        shown = self._behind(before, ops)
        if shown is not None:
            self.file(*shown)
        return shown is not None

    def _behind(
        self, before: Sequence[tuple[Op, ...]], ops: tuple[Op, ...], sign: str = ""
    ) -> tuple[tuple[Op, ...], list[Violation]] | None:
        """`ops` over resets of the VM behind the programs `before`, with violations, where a user's
        host keeps over a reset what makes it wrong: the same violation (of signature `sign`, if
        given) shows in each run behind them, and in no run of `ops` alone. Otherwise None."""
        host = self._executor.testbed.host
        if self._vain == _MOST_VAIN or not isinstance(host, PluginHost | NativeHost):
            return None
        for programs in (before[-1:], before, (ops,)):  # machine code may have begun with `ops`
            longer = (*chain.from_iterable((*one, _VM_RESET) for one in programs), *ops)
            found = self._shown_each_time(longer, ops, sign) if programs else []
            if found:
                return longer, found
        self._vain += 1
        return None

    def _shown_each_time(
        self, longer: tuple[Op, ...], ops: tuple[Op, ...], sign: str
    ) -> list[Violation]:
        """The violations of `longer`, which ends with `ops`, if they are as `_behind` says."""
        start = len(longer) - len(ops)
        first = self._first_of(longer, start)
        if first is None or sign not in ("", first[1]):
            return []
        for runs in _RUNS_BETWEEN:
            if any(self._first_of(ops, 0) for _ in range(runs)):
                return []
            again = self._first_of(longer, start)
            if again is None or again[:2] != first[:2]:
                return []
        return first[2]

    def _first_of(self, ops: tuple[Op, ...], start: int) -> tuple[int, str, list[Violation]] | None:
        """The first operation of `ops` that goes wrong, if it is number `start` or a later one, the
        signature and all violations."""
        look = self.book.probe.try_look(ops)
        if look is None or not look.violations or look.violations[0].op < start:
            return None
        first = look.violations[0]
        return first.op, signature(first, ops[first.op]), look.violations

    def _over_a_reset(
        self, ops: tuple[Op, ...], violation: Violation
    ) -> tuple[tuple[Op, ...], list[Violation]] | None:
        """A program over a reset of the VM that shows what `ops` showed before they ran, for it is
        the programs before that left it behind. None for what was filed already."""
        known = self._after_reset.get(violation.check)
        if known is not None:
            self.book.findings[known].count += 1
            return None
        for start in (*_LEAVES_BEHIND, ops):
            look = self.book.probe.try_look((*start, _VM_RESET))
            found = [] if look is None else [v for v in look.violations if is_of_new_vm(v)]
            if found:
                return (*start, _VM_RESET), found
        return ops, [violation]

    def file_unstable(self, ops: tuple[Op, ...], violation: Violation) -> None:
        """Files a program whose violation does not show again."""
        ops = ops[: violation.op + 1]
        key, is_new = self.book.count_unstable(ops, self._elapsed())
        if is_of_new_vm(violation):
            self._after_reset[violation.check] = key
        if is_new:
            self.unstable.append(
                f"{signature(violation, ops[violation.op])} (not seen again with the same program)"
            )
        if is_new and self._shelf is not None:
            store, header = self._shelf.store, self._executor.header
            path = store.finding_path(key)
            comment = unstable_comment(
                key, violation, self._where(), run_command(str(path), header)
            )
            store.save_finding(key, Program(header, ops), comment)
            self._shelf.filed(key, NOT_REPRODUCIBLE, self._elapsed())

    def _where(self) -> str:
        return f"a campaign on target {self._executor.target.name}"

    def _settle(self, cases: Sequence[Case]) -> None:
        """Identifies what is new and saves it."""
        for case in cases:
            findings, key = self.book.settle(case, self._elapsed())
            if not key:
                self.unstable.append(f"{case.sighting.symptom.name} (not seen again)")
                continue
            if is_of_new_vm(case.sighting.violation):
                self._after_reset[case.sighting.violation.check] = key
            if self._shelf is not None:
                for finding in findings:
                    self._save(self._shelf.store, finding)
                self._shelf.filed(key, self.book.findings[key].check, self._elapsed())

    def recover(self, index: int, jobs: int, begin: Callable[[bytes], bool]) -> None:
        """Files what earlier sessions met and had no time to file. `begin` is called with each
        program before it runs, and answers whether it may."""
        shelf = self._shelf
        if shelf is None:
            return
        entries = read_journals(journal_files(shelf.store.journals, index, jobs))
        tried: set[bytes] = set()
        for met in unsettled(entries):
            if met.data not in tried and begin(met.data):
                tried.add(met.data)
                ops = self._executor.decode(met.data)
                violations = self._executor.run(ops)
                if violations:
                    self.file(ops, violations)
            shelf.settled(met.sign)

    def _save(self, store: Store, finding: Finding) -> None:
        path = store.finding_path(finding.key)
        comment = comment_of(finding, self._where(), run_command(str(path), self._executor.header))
        store.save_finding(finding.key, finding.program(self._executor.header), comment)
