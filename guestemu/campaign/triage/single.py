# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of one program, outside of any campaign."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.campaign.ranges import limit_op
from guestemu.campaign.triage.identify import Finding, cases_of, digest_of, identify
from guestemu.campaign.triage.probe import Probe
from guestemu.machine.watchdog import Watchdog
from guestemu.program.ops import Op
from guestemu.program.program import Program
from guestemu.replay.lockstep.check import judged_testbed
from guestemu.report.trace.run import check_program, seconds_for
from guestemu.runner.scout import Scout, may_end_process
from guestemu.runner.testbed import Testbed

_SLOW_S: Final = 0.05
"""A run that takes this long is a slow one, in seconds of CPU time."""

_SEARCH_S: Final = 8.0
"""What a search with slow runs may take; the others end by themselves within a second or two."""


def _near(program: Program) -> Callable[[tuple[Op, ...]], bool]:
    """Which programs a search from `program` may come to where runs are slow: its own operations,
    and others as long as a campaign would have them."""
    own = frozenset(program.ops)

    def allows(ops: tuple[Op, ...]) -> bool:
        return all(op in own or limit_op(op, lawful=False) == op for op in ops)

    return allows


def findings_of(program: Program, seconds: float | None = None) -> list[Finding]:
    """Runs `program` as its header says and identifies everything that goes wrong in it, in the
    order in which it shows; empty when nothing does.

    The header stays as it is. Each run may take `seconds` of CPU time (default: as in `run_in`).
    Raises `InputError` for a configuration that cannot be, and `ProgramTimeError` where the program
    takes more.
    """
    check_program(program)
    testbed = judged_testbed(program.header)
    limit = seconds_for(program.header) if seconds is None else seconds
    try:
        with Watchdog(lambda: testbed.guest.machine, limit) as bound:
            bound.rest()
            return _findings(testbed, program, bound)
    finally:
        testbed.close()


def _findings(testbed: Testbed, program: Program, bound: Watchdog) -> list[Finding]:
    probe = Probe(testbed, program.header)
    probe.allows = _near(program)
    probe.bound = bound
    if may_end_process(testbed.host):
        scout = Scout(testbed)
        scout.try_out(program.ops)
        if scout.met_end:
            testbed.scout = scout
        else:
            scout.close()
    probe.run_battery()
    start = time.process_time()
    look = probe.look(program.ops, traced=True)
    cost = time.process_time() - start
    if cost > _SLOW_S:
        probe.limit(int(_SEARCH_S / cost))
    found: dict[str, Finding] = {}
    for case in cases_of(probe, program.ops, look):
        for finding in identify(probe, case):
            found.setdefault(digest_of(finding.key), finding)
    return list(found.values())


def choose(findings: list[Finding], key: str | None, name: str) -> Finding:
    """The finding called `key` (or the only digest that starts so), without `key` the first.

    Raises `InputError` with the keys there are.
    """
    if not findings:
        raise InputError(f"{name}: no check fails, there is nothing to minimise; see guestemu run")
    if key is None:
        return findings[0]
    chosen = [finding for finding in findings if finding.key == key]
    if not chosen:
        keys = ", ".join(finding.key for finding in findings)
        raise InputError(f"--key {key}: {name} shows {keys}; name one of these")
    return chosen[0]
