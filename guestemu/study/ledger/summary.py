# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger in a few numbers: what became of the runs of a policy, or of a failure under it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from guestemu.study.ledger.cell import Noticed, Row
from guestemu.study.ledger.failures import NOTHING
from guestemu.study.ledger.vmm import VmmMigration


class LedgerTally(msgspec.Struct, frozen=True):
    """Runs with a failure, each counted once in the first of these that fits: `dead` (the guest
    stopped), `unnoticed` (pages are lost and only guestemu's checks can know), `noticed`
    (pages are lost although guest or host can know), `stopped` (the migration was refused or
    aborted because of the failure), `harmless`. Beside that, `leaked` counts runs in which a caller
    gave pages up, `pages` the most pages lost in one run."""

    runs: int = 0
    dead: int = 0
    unnoticed: int = 0
    noticed: int = 0
    stopped: int = 0
    harmless: int = 0
    leaked: int = 0
    pages: int = 0


class PolicyTally(msgspec.Struct, frozen=True):
    """The tally of one policy."""

    policy: str
    tally: LedgerTally


def is_unnoticed(row: Row) -> bool:
    """Pages are lost, and at most guestemu's own checks say that something is wrong."""
    return row.lost > 0 and set(row.noticed_by) <= {Noticed.CHECKS.value}


def tally(rows: Iterable[Row]) -> LedgerTally:
    """Counts the runs among `rows` that had a failure."""
    failed = [row for row in rows if row.failure != NOTHING]
    dead = [row for row in failed if row.migration == VmmMigration.GUEST_DEAD.value]
    alive = [row for row in failed if row.migration != VmmMigration.GUEST_DEAD.value]
    lossy = [row for row in alive if row.lost]
    unnoticed = sum(map(is_unnoticed, lossy))
    stopped = sum(Noticed.ADMIN.value in row.noticed_by for row in alive if not row.lost)
    return LedgerTally(
        runs=len(failed),
        dead=len(dead),
        unnoticed=unnoticed,
        noticed=len(lossy) - unnoticed,
        stopped=stopped,
        harmless=len(alive) - len(lossy) - stopped,
        leaked=sum(bool(row.leaked) for row in failed),
        pages=max((row.lost for row in failed), default=0),
    )


def by_policy(rows: Iterable[Row]) -> tuple[PolicyTally, ...]:
    """The tally of each policy, in the order of `rows`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.policy, []).append(row)
    return tuple(PolicyTally(policy, tally(group)) for policy, group in groups.items())
