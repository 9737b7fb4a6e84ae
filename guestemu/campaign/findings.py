# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of a session: violations folded by what is wrong, counted instead of multiplied.

A campaign meets the same defect thousands of times. Each violating program is looked at with its
host traced, which gives a *sign*: symptom, extent, suspicious host code, fault ops before. Where a
sign is new, the finding behind it is identified (guestemu.campaign.triage), which takes some
thousand runs. A sign met 2, 4, 8 and 16 times is identified again, because two defects may read
alike, unless that took seconds. Of what is met often only a part is looked at, and what covers
something new; a campaign that ends by the clock looks no longer than a part of its time.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final, TypeAlias

import msgspec

from guestemu.campaign.executor import Executor
from guestemu.campaign.triage.hostcode import Spots
from guestemu.campaign.triage.identify import (
    Case,
    Finding,
    cases_of,
    digest_of,
    host_name,
    identify,
)
from guestemu.campaign.triage.probe import Look, Probe
from guestemu.campaign.triage.symptom import Symptom, failure_of, plain_message
from guestemu.checks.base import Violation
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.runner.testbed import HOST_FAILED

_AGAIN: Final = frozenset({1, 2, 4, 8, 16})
_SLOW: Final = 2.0
"""Seconds that an identification may take to be worth repeating."""

_LOOKS: Final = ((64, 1), (1024, 16), (1 << 62, 256))
"""Of violations that read alike up to so many are looked at, one in so many."""

_SHARE: Final = 0.4
"""Of a campaign with an end by the clock the part that looking at violations may take, beside the
first look at each kind."""

_RUNS: Final = 24_000
_SLICE_S: Final = 12.0
"""Runs and seconds that one identification may take."""

_TIMES: Final = 3
"""Runs in which a violation must show, each time, before it is looked into."""

NOT_REPRODUCIBLE: Final = "not-reproducible"
"""The check of a finding whose program does not show it each time."""


_Sign: TypeAlias = tuple[Symptom, Spots, frozenset[OpKind]]


class FindingCount(msgspec.Struct):
    """What a campaign knows of one finding besides its program; seconds since the start."""

    key: str
    check: str
    count: int
    first_seen_s: float


def signature(violation: Violation, op: Op) -> str:
    """A violation without the numbers that vary between runs; error numbers and a plain 0 stay."""
    if violation.check == HOST_FAILED:
        return failure_of(violation.message)
    return f"{violation.check} {op.kind.name} {plain_message(violation)}"


def _digest_of_host(spec: str) -> str:
    return hashlib.sha256(host_name(spec).encode()).hexdigest()[:8]


class FindingBook:
    """What one session found, on the testbed of `executor`."""

    def __init__(self, executor: Executor) -> None:
        self.findings: dict[str, FindingCount] = {}
        self.probe = Probe(executor.testbed, executor.header, executor.heartbeat)
        self.probe.allows = executor.allows
        self.probe.ignored = executor.target.ignored
        self.probe.is_slow |= bool(executor.target.order)
        self._executor = executor
        self._read: dict[str, int] = {}
        self._met: dict[_Sign, int] = {}
        self._keys: dict[_Sign, str] = {}
        self._slow: set[_Sign] = set()
        self._last: dict[str, str] = {}
        self._start = time.monotonic()
        self._spent = 0.0
        self.deadline: float | None = None
        """When identification has to end (`time.monotonic`), None: never."""
        self._digests: dict[str, str] = {}
        self._by_symptom: dict[str, str] = {}
        self._known: Spots = frozenset()

    def meet(
        self, ops: tuple[Op, ...], violations: list[Violation], is_new: bool = False
    ) -> list[Case] | None:
        """Counts a violating program; the cases in it that should be settled. None when the program
        does not show anything again: the machine then remembered something that it should not. One
        that covered something new, of the host's code for example, is looked at however often what
        it shows was met, for a rare defect may read like a frequent one."""
        read = signature(violations[0], ops[violations[0].op])
        times = self._read[read] = self._read.get(read, 0) + 1
        last = self._last.get(read)
        is_named = violations[0].check == HOST_FAILED  # what fails is named by its message
        if last is not None and (is_named or not (is_new or self._is_worth_a_look(times))):
            self.findings[last].count += 1
            return []
        start = time.monotonic()
        try:
            return self._look(ops, violations, last is None, is_new)
        finally:
            self._spent += time.monotonic() - start

    def _is_worth_a_look(self, times: int) -> bool:
        """Whether a violation of a known kind, met for the `times`th time, is looked at."""
        every = next(every for limit, every in _LOOKS if times <= limit)
        if times % every:
            return False
        since = time.monotonic() - self._start
        return self.deadline is None or self._spent < _SHARE * since

    def _look(
        self, ops: tuple[Op, ...], violations: list[Violation], is_first: bool, is_new: bool
    ) -> list[Case] | None:
        probe = self.probe
        read = signature(violations[0], ops[violations[0].op])
        probe.heartbeat = self._executor.heartbeat
        probe.bound = self._executor.bound
        probe.limit(None, self.deadline)
        if violations[0].check != HOST_FAILED:
            probe.run_battery()
        look = probe.try_look(ops, traced=True)
        if look is None:
            return [] if probe.is_over else None
        if not look.sightings:
            return None
        if is_first and not self._is_stable(ops, look):
            return None
        new: list[Case] = []
        cases = cases_of(probe, ops, look)
        if is_new and probe.is_wrong_throughout:
            cases += self._behind(ops[look.first[0].violation.op + 1 :])
        for case in cases:
            sign = self._sign(case)
            met = self._met[sign] = self._met.get(sign, 0) + 1
            key = self._keys.get(sign)
            if key is None or (met in _AGAIN and sign not in self._slow):
                new.append(case)
            else:
                self.findings[key].count += 1
                self._last[read] = key
        return new

    def _behind(self, rest: tuple[Op, ...]) -> list[Case]:
        """What the operations behind a program's first wrong one show each by itself, where code is
        suspected: on a host that has every call wrong the first one says nothing of them."""
        cases: list[Case] = []
        for op in dict.fromkeys(rest):
            look = self.probe.try_look((op,), traced=True)
            if look is not None and any(map(self.probe.suspicious, look.first)):
                cases += cases_of(self.probe, (op,), look)
        return cases

    def _is_stable(self, ops: tuple[Op, ...], look: Look) -> bool:
        """Whether what `look` saw shows in some further runs."""
        check = look.sightings[0].violation.check
        if check == HOST_FAILED:
            return True
        for _ in range(_TIMES):
            again = self.probe.try_look(ops)
            if again is not None and all(v.check != check for v in again.violations):
                return False
        return True

    def count_unstable(self, ops: tuple[Op, ...], seconds: float) -> tuple[str, bool]:
        """Counts a program that showed something once and then not again; the key of all programs
        that ended so with the same kind of operation, and whether it is new."""
        spec = SPECS[ops[-1].kind]
        key = f"{NOT_REPRODUCIBLE}-{spec.name}-{_digest_of_host(self._executor.header.host)}"
        count = self.findings.get(key)
        if count is not None:
            count.count += 1
            return key, False
        self.findings[key] = FindingCount(key, NOT_REPRODUCIBLE, 1, round(seconds, 3))
        return key, True

    def settle(self, case: Case, seconds: float) -> tuple[list[Finding], str]:
        """Identifies and counts what is behind `case`: the findings that are new, and the key that
        the case counts for (empty when it does not show again). A search that the clock ended has
        no canonical program, so it counts for a finding with the same symptom, if there is one."""
        sign = self._sign(case)
        new: list[Finding] = []
        first = ""
        start = time.monotonic()
        left = _SLICE_S if self.deadline is None else min(_SLICE_S, self.deadline - start)
        self.probe.limit(_RUNS, None if self.deadline is None else start + left)
        for finding in identify(self.probe, case, self._known):
            self._known |= finding.spots
            key = self._digests.get(digest_of(finding.key), "")
            if not key and self.probe.is_late:
                key = self._by_symptom.get(finding.symptom, "")
            key = key or self._digests.setdefault(digest_of(finding.key), finding.key)
            self._by_symptom.setdefault(finding.symptom, key)
            first = first or key
            count = self.findings.get(key)
            if count is None:
                check = finding.violation.check
                self.findings[key] = FindingCount(key, check, 1, round(seconds, 3))
                new.append(finding)
            elif key == first:
                count.count += 1
        took = time.monotonic() - start
        self._spent += took
        if took > _SLOW:
            self._slow.add(sign)
        if first:
            self._keys.setdefault(sign, first)
            violation = case.sighting.violation
            if violation.check == HOST_FAILED:
                self._last[failure_of(violation.message)] = first
        return new, first

    def _sign(self, case: Case) -> _Sign:
        before = case.ops[: case.sighting.violation.op]
        faults = frozenset(op.kind for op in before if SPECS[op.kind].is_fault)
        return case.sighting.symptom, self.probe.suspicious(case.sighting), faults
