# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration blockers, and the one that the guest's READY removes.

Source: migration/migration.c migrate_add_blocker() (QEMU 10.2), D24, D26, D28.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.errno import EBUSY
from guestemu.abi.errors import GuestemuError
from guestemu.abi.msrs import KVM_MIGRATION_READY

SEV_BLOCKER: Final = "SEV: Migration is not implemented"
"""The blocker of SEV and SNP in QEMU 10.2, which nothing removes (D26)."""

GUEST_BLOCKER: Final = "SEV: the guest has not enabled its migration"
"""The blocker of the 2021 set until MSR_KVM_MIGRATION_CONTROL says READY."""


class MigrationBlocked(GuestemuError):
    """A migration was to start although blockers are there."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__(f"migration is blocked: {'; '.join(reasons)}")
        self.reasons = reasons


class MigrationBlockers:
    """The blockers of one VM. They are looked at when a migration starts and at no other time, so
    `add` refuses while one is running (D28)."""

    def __init__(self) -> None:
        self.reasons: tuple[str, ...] = ()
        self.is_running = False
        """Whether a migration is in progress; kept by `Precopy`."""

    def add(self, reason: str) -> int:
        """0, or -EBUSY while a migration is running: the blocker is not there then."""
        if self.is_running:
            return -EBUSY
        if reason not in self.reasons:
            self.reasons = (*self.reasons, reason)
        return 0

    def remove(self, reason: str) -> None:
        """migrate_del_blocker(): allowed at any time."""
        self.reasons = tuple(one for one in self.reasons if one != reason)

    def check(self) -> None:
        """Raises `MigrationBlocked` if there is a blocker."""
        if self.reasons:
            raise MigrationBlocked(self.reasons)


class GuestReadyBlocker:
    """The 2021 set's blocker as its MSR handler drives it (D24).

    `repaired` ("msr-zero" of the host qemu-v4): writing 0 adds the blocker again, which fails while
    a migration is running; then `has_failed_to_block` says that only a cancel helps (C19).
    """

    def __init__(self, blockers: MigrationBlockers, *, repaired: bool = False) -> None:
        self._blockers = blockers
        self._is_repaired = repaired
        self.has_failed_to_block = False
        blockers.add(GUEST_BLOCKER)

    def write(self, data: int) -> int:
        """WRMSR of `data`: exactly READY removes the blocker. 0, or -EBUSY as above."""
        if data == KVM_MIGRATION_READY:
            self._blockers.remove(GUEST_BLOCKER)
            self.has_failed_to_block = False
        elif self._is_repaired and not data & KVM_MIGRATION_READY:
            result = self._blockers.add(GUEST_BLOCKER)
            self.has_failed_to_block = bool(result)
            return result
        return 0
