# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole ledger: every failure at every step of every flow under every policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from guestemu.abi.errors import GuestemuError, InputError
from guestemu.study.ledger.cell import Ending, Row, When, make_row, run_flow
from guestemu.study.ledger.failures import Failure, Point, failures_of
from guestemu.study.ledger.flows import Flow
from guestemu.study.ledger.policies import LedgerRow
from guestemu.study.ledger.rig import Rig
from guestemu.study.ledger.vmm import VmmMigration

MAX_STEPS: Final = 5
"""Steps of one kind in one flow that are run unless all are asked for: the first, the last and
some between."""


def find_failures(names: tuple[str, ...], sev: str = "sev") -> tuple[Failure, ...]:
    """Failures of a guest kind by name; all of them if `names` is empty. `InputError` for an
    unknown name."""
    by_name = {failure.name: failure for failure in failures_of(sev)}
    for name in names:
        if name not in by_name:
            raise InputError(f"failure {name!r}: unknown, take one of {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) or tuple(by_name.values())


def plan(
    policies: Iterable[LedgerRow], flows: Iterable[Flow]
) -> tuple[tuple[LedgerRow, Flow], ...]:
    """What is run one after another; a real kernel cannot do every flow, and a guest that never
    writes MIGRATION_CONTROL not those about it."""
    chosen = tuple(flows)
    return tuple(
        (policy, flow)
        for policy in policies
        for flow in chosen
        if (flow.on_kernels or not policy.is_kernel)
        and (policy.asks_to_migrate or not flow.needs_control)
    )


def run_flow_rows(
    rig: Rig, flow: Flow, failures: Iterable[Failure], *, every_step: bool = False
) -> Iterator[Row]:
    """The lines of one flow under one policy, the one without a failure first."""
    whens = (When.BEFORE, When.DURING) if flow.in_migration and rig.can_migrate else (When.BEFORE,)
    for when in whens:
        normal = run_flow(rig, flow, when)
        if normal is None or normal.migration is VmmMigration.GUEST_DEAD:
            raise GuestemuError(f"ledger: flow {flow.name} under {rig.policy.name} does not end")
        yield make_row(rig, flow, when, None, 0, normal, normal)
        for failure in failures:
            for step in _steps(_count(flow, failure, normal), every_step):
                ending = run_flow(rig, flow, when, failure, step)
                if ending is not None:
                    yield make_row(rig, flow, when, failure, step, ending, normal)


def _count(flow: Flow, failure: Failure, normal: Ending) -> int:
    """How many steps there are at which `failure` can happen."""
    if failure.point is Point.PAGE:
        return flow.pages if flow.has_entries else 0
    if failure.point is Point.SPLIT:
        return flow.splits
    return normal.counts[failure.point]


def _steps(count: int, every_step: bool) -> Iterable[int]:
    """All steps, or the first two, the middle one and the last two."""
    if every_step or count <= MAX_STEPS:
        return range(count)
    return (0, 1, count // 2, count - 2, count - 1)
