# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMM's part: whether it starts a migration that is asked for, and whether it goes on.

MIGRATION_CONTROL = 0 looks like a reboot that takes long: the VMM waits for READY until its
time-out (Rutherford, 17 May 2021: 'a really sad long timeout in userspace'). The two proposed
signals need no time-out. A blocker that comes while a migration runs has no effect (D28), so a VMM
has to look itself to abort.
"""

from __future__ import annotations

import enum

from guestemu.study.ledger.host import LedgerHost
from guestemu.study.ledger.policies import LedgerRow


class VmmMigration(enum.Enum):
    """What became of the migration that was asked for."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """At once: the guest has said that it is for good."""
    TIMED_OUT = "timed out"
    """Refused after waiting in vain for READY."""
    ABORTED = "aborted"
    """It was running."""
    GUEST_DEAD = "guest dead"
    """There is no guest left to migrate."""


class Wait(enum.Enum):
    """What the VMM waited for."""

    NOTHING = ""
    REBOOT = "reboot"
    """READY came back."""
    TIMEOUT = "time-out"
    """It did not."""


def at_start(host: LedgerHost, policy: LedgerRow) -> VmmMigration | None:
    """Why no migration starts; None: it does. A guest that is not offered MIGRATION_CONTROL is not
    asked."""
    if host.is_stopped or host.is_disabled:
        return VmmMigration.REFUSED
    return None if host.migration_ready or not policy.asks_to_migrate else VmmMigration.TIMED_OUT


def while_running(host: LedgerHost, policy: LedgerRow) -> VmmMigration | None:
    """Why a running migration ends early; None: it goes on."""
    if host.is_stopped or host.is_disabled:
        return VmmMigration.ABORTED
    is_withdrawn = policy.aborts_on_zero and not host.migration_ready
    return VmmMigration.ABORTED if is_withdrawn else None
