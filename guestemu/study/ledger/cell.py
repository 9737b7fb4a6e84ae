# SPDX-License-Identifier: GPL-2.0-or-later
"""One cell of the ledger: a flow under a policy with one failure, then a migration.

Who noticed is what differs from the same flow without a failure. What is lost is read at the
destination of a real migration, by another key.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, Gva
from guestemu.program.ops import Op, OpKind
from guestemu.study.ledger.failures import NOTHING, Failure, Point
from guestemu.study.ledger.flows import Flow
from guestemu.study.ledger.pages import NOTHING_LOST, Loss, mapped
from guestemu.study.ledger.rig import Rig
from guestemu.study.ledger.scene import Scene
from guestemu.study.ledger.vmm import VmmMigration, Wait, at_start, while_running


class When(enum.Enum):
    """Whether a migration runs already when the failure happens."""

    BEFORE = "before"
    DURING = "during"


class Noticed(enum.Enum):
    """Who can know that something failed."""

    LOG = "guest log"
    CALLER = "caller"
    VMM = "vmm"
    """The guest notified it."""
    ADMIN = "migration"
    """The migration that was asked for does not happen."""
    DEATH = "guest death"
    """The guest stops: BUG, an exception, an endless loop."""
    CHECKS = "checks"
    """guestemu's own; production has none of them."""


class Row(msgspec.Struct, frozen=True):
    """A line of the ledger. `step` is -1 without a failure.

    `lost` pages whose defined content is wrong at the destination, with `lost_bytes` wrong bytes;
    `lost_strict` counts pages whatever flips came after the write. `corrupted` pages were wrong at
    the source already. `leaked` pages were given up by a caller (None: not known). `waited`: what
    the VMM waited for.
    """

    failure: str
    flow: str
    step: int
    policy: str
    when: str
    noticed_by: tuple[str, ...]
    migration: str
    waited: str
    lost: int
    lost_strict: int
    lost_bytes: int
    corrupted: int
    leaked: int | None


class Ending(msgspec.Struct, frozen=True):
    """How a run ended, before it is compared with the one without a failure.

    `told`: how often the VMM was told (`LedgerHost`); `counts`: how often each point was reached.
    """

    noticed: frozenset[Noticed]
    log: frozenset[str]
    told: int
    migration: VmmMigration
    waited: Wait
    loss: Loss
    corrupted: int
    leaked: int | None
    counts: dict[Point, int]


_PASS: Final = (
    Op(OpKind.HOST_DIRTY_FETCH, (1,)),
    Op(OpKind.HOST_STATUS_COPY),
    Op(OpKind.HOST_SEND, (0,)),
)


def run_flow(
    rig: Rig, flow: Flow, when: When, failure: Failure | None = None, step: int = 0
) -> Ending | None:
    """Runs `flow`; None if `failure` cannot happen at that step."""
    rig.bed.reset()
    scene = Scene(rig.bed)
    flow.prepare(scene)
    scene.mark()
    if when is When.DURING and rig.can_migrate:
        _begin_migration(scene, flow)

    def page(index: int) -> Gva:
        return scene.guest.gva(flow.region, flow.page + index)

    if not rig.injector.begin(failure, step, page):
        return None
    flow.act(scene)
    rig.injector.end()
    counts = rig.injector.counts()
    log, told = scene.log(), rig.host.told
    migration, waited = _decide(rig, scene, flow, when)
    corrupted, loss = 0, NOTHING_LOST
    has_violations = bool(scene.violations)
    if migration is not VmmMigration.GUEST_DEAD:
        corrupted = scene.written.judge(scene.guest).defined
    if migration is VmmMigration.COMPLETED:
        loss = _migrate(rig, scene, flow, when)
    noticed = frozenset(_noticed(scene, migration, has_violations))
    return Ending(noticed, log, told, migration, waited, loss, corrupted, scene.leaked, counts)


def _begin_migration(scene: Scene, flow: Flow) -> None:
    start = Op(OpKind.MIGRATE_START, (flow.pages, 0), region=flow.region, page=flow.page)
    for op in (start, *_PASS):
        scene.step(op)


def _decide(rig: Rig, scene: Scene, flow: Flow, when: When) -> tuple[VmmMigration, Wait]:
    """What the VMM does; while it waits for READY, a kexec goes on."""
    if scene.is_dead:
        return VmmMigration.GUEST_DEAD, Wait.NOTHING
    if when is When.DURING:
        aborted = while_running(rig.host, rig.policy)
        return aborted or VmmMigration.COMPLETED, Wait.NOTHING
    refused = at_start(rig.host, rig.policy)
    if refused is VmmMigration.TIMED_OUT:
        if flow.late is None:
            return refused, Wait.TIMEOUT
        flow.late(scene)
        refused = VmmMigration.GUEST_DEAD if scene.has_died() else at_start(rig.host, rig.policy)
        waited = Wait.TIMEOUT if refused is VmmMigration.TIMED_OUT else Wait.REBOOT
        return refused or VmmMigration.COMPLETED, waited
    return refused or VmmMigration.COMPLETED, Wait.NOTHING


def _migrate(rig: Rig, scene: Scene, flow: Flow, when: When) -> Loss:
    """Moves the guest, or a real kernel's pages, and reads what was written."""
    if not rig.can_migrate:
        places = (mapped(scene.guest, gva) for gva in scene.written.addresses())
        frames = {place.gpa >> PAGE_SHIFT for place in places if place is not None}
        return scene.written.judge(scene.guest, rig.carry(frames).ram)
    if when is When.BEFORE:
        _begin_migration(scene, flow)
    else:
        for op in _PASS:
            scene.step(op)
    scene.step(Op(OpKind.MIGRATE_STOP))
    return scene.written.judge(scene.guest)


def _noticed(scene: Scene, migration: VmmMigration, has_violations: bool) -> set[Noticed]:
    found = {
        Noticed.CALLER: scene.has_error,
        Noticed.ADMIN: migration in _NOT_DONE,
        Noticed.DEATH: scene.is_dead,
        Noticed.CHECKS: has_violations,
    }
    return {who for who, is_so in found.items() if is_so}


_NOT_DONE: Final = frozenset({VmmMigration.REFUSED, VmmMigration.TIMED_OUT, VmmMigration.ABORTED})


def make_row(
    rig: Rig,
    flow: Flow,
    when: When,
    failure: Failure | None,
    step: int,
    ending: Ending,
    normal: Ending,
) -> Row:
    """The line of a run; `normal` is the same without a failure."""
    new = set(ending.noticed - normal.noticed)
    if ending.told > normal.told:
        new.add(Noticed.VMM)
    if ending.log - normal.log:
        new.add(Noticed.LOG)
    return Row(
        failure=NOTHING if failure is None else failure.name,
        flow=flow.name,
        step=-1 if failure is None else step,
        policy=rig.policy.name,
        when=when.value,
        noticed_by=tuple(who.value for who in Noticed if who in new),
        migration=ending.migration.value,
        waited=ending.waited.value,
        lost=ending.loss.defined,
        lost_strict=ending.loss.strict,
        lost_bytes=ending.loss.size,
        corrupted=ending.corrupted,
        leaked=ending.leaked,
    )
