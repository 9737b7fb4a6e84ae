# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of a session: violations folded by what is wrong, counted instead of multiplied.

A campaign meets the same defect thousands of times. Each violating program is looked at with its
host traced, which gives a *sign*: symptom, extent, suspicious host code, fault ops before. Where a
sign is new, the finding behind it is identified (guestemu.findings), which takes some thousand
runs. A sign met 2, 4, 8 and 16 times is identified again, because two defects may read alike,
unless that took seconds. Of what is met very often only a part is looked at.
"""

from __future__ import annotations

import time
from typing import Final, TypeAlias

import msgspec

from guestemu.campaign.executor import Executor
from guestemu.checks.base import Violation
from guestemu.findings.hostcode import Spots
from guestemu.findings.identify import Case, Finding, cases_of, digest_of, identify
from guestemu.findings.probe import Probe
from guestemu.findings.symptom import Symptom, plain_message
from guestemu.program.ops import SPECS, Op, OpKind

_AGAIN: Final = frozenset({1, 2, 4, 8, 16})
_SLOW: Final = 2.0
"""Seconds that an identification may take to be worth repeating."""

_OFTEN: Final = 512
_ONE_OF: Final = 16
"""Of violations that read alike, after the first `_OFTEN` one in `_ONE_OF` is looked at."""


_Sign: TypeAlias = tuple[Symptom, Spots, frozenset[OpKind]]


class FindingCount(msgspec.Struct):
    """What a campaign knows of one finding besides its program; seconds since the start."""

    key: str
    check: str
    count: int
    first_seen_s: float


def signature(violation: Violation, op: Op) -> str:
    """A violation without the numbers that vary between runs; error numbers and a plain 0 stay."""
    return f"{violation.check} {op.kind.name} {plain_message(violation)}"


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
        self._digests: dict[str, str] = {}
        self._known: Spots = frozenset()

    def meet(self, ops: tuple[Op, ...], violations: list[Violation]) -> list[Case] | None:
        """Counts a violating program; the cases in it that should be settled. None when the program
        does not show anything again: the machine then remembered something that it should not."""
        read = signature(violations[0], ops[violations[0].op])
        times = self._read[read] = self._read.get(read, 0) + 1
        last = self._last.get(read)
        if times > _OFTEN and times % _ONE_OF and last is not None:
            self.findings[last].count += 1
            return []
        probe = self.probe
        probe.heartbeat = self._executor.heartbeat
        probe.bound = self._executor.bound
        probe.run_battery()
        look = probe.try_look(ops, traced=True)
        if look is None or not look.sightings:
            return None
        new: list[Case] = []
        for case in cases_of(probe, ops, look):
            sign = self._sign(case)
            met = self._met[sign] = self._met.get(sign, 0) + 1
            key = self._keys.get(sign)
            if key is None or (met in _AGAIN and sign not in self._slow):
                new.append(case)
            else:
                self.findings[key].count += 1
                self._last[read] = key
        return new

    def settle(self, case: Case, seconds: float) -> tuple[list[Finding], str]:
        """Identifies and counts what is behind `case`: the findings that are new, and the key that
        the case counts for (empty when it does not show again)."""
        sign = self._sign(case)
        new: list[Finding] = []
        first = ""
        start = time.monotonic()
        for finding in identify(self.probe, case, self._known):
            self._known |= finding.spots
            key = self._digests.setdefault(digest_of(finding.key), finding.key)
            first = first or key
            count = self.findings.get(key)
            if count is None:
                check = finding.violation.check
                self.findings[key] = FindingCount(key, check, 1, round(seconds, 3))
                new.append(finding)
            elif key == first:
                count.count += 1
        if time.monotonic() - start > _SLOW:
            self._slow.add(sign)
        if first:
            self._keys.setdefault(sign, first)
        return new, first

    def _sign(self, case: Case) -> _Sign:
        before = case.ops[: case.sighting.violation.op]
        faults = frozenset(op.kind for op in before if SPECS[op.kind].is_fault)
        return case.sighting.symptom, self.probe.suspicious(case.sighting), faults
