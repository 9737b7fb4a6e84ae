# SPDX-License-Identifier: GPL-2.0-or-later
"""A notifier whose lookup of one page fails, as evidence for C19 and C20.

The ledger's experiment (docs/ledger.md): three pages become shared, `lookup_address()` finds
nothing for one of them, the caller fills them, the guest migrates. Facts A13, A14, R5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from guestemu.study.claims.result import Evidence
from guestemu.study.ledger.cell import Noticed, Row
from guestemu.study.ledger.flows import PAGES, find_flows
from guestemu.study.ledger.matrix import find_failures, run_flow_rows
from guestemu.study.ledger.policies import find_policies
from guestemu.study.ledger.rig import Rig
from guestemu.study.ledger.vmm import VmmMigration

FLOW: Final = "decrypt-3"
FAILURE: Final = "lookup"
WITHDRAWS: Final = "msr-zero"
"""The policy that writes MIGRATION_CONTROL = 0."""

_UPSTREAM: Final = ("upstream-5.17", "upstream-6.1", "upstream-6.12")
_UPSTREAM_PREFIX: Final = "upstream-"


class FailedLookup(msgspec.Struct, frozen=True):
    """The lookup fails for one page, the number `step` of the three: what the guest logs, what
    becomes of the migration and how many pages are lost in it. `guest` is the policy's or kernel's
    name."""

    guest: str
    step: int
    is_logged: bool
    migration: str
    lost: int


def failed_lookups(kernels: tuple[str, ...]) -> tuple[FailedLookup, ...]:
    """Upstream's code of three generations, the kernels, and a guest that writes 0, at each page.

    Raises what booting a kernel raises.
    """
    found: list[FailedLookup] = []
    for policy in find_policies((*_UPSTREAM, *kernels, WITHDRAWS), kernels):
        rig = Rig(policy)
        try:
            rows = run_flow_rows(rig, find_flows((FLOW,))[0], find_failures((FAILURE,)))
            found += [_seen(row) for row in rows if row.step >= 0 and row.when == "before"]
        finally:
            rig.close()
    return tuple(found)


def _seen(row: Row) -> FailedLookup:
    guest = row.policy
    if guest.startswith(_UPSTREAM_PREFIX):
        guest = f"snippet:{guest.removeprefix(_UPSTREAM_PREFIX)}"
    return FailedLookup(
        guest, row.step, Noticed.LOG.value in row.noticed_by, row.migration, row.lost
    )


def warning_loses(found: Iterable[FailedLookup]) -> bool:
    """Every guest that warns goes on, migrates, and has lost pages."""
    warned = [each for each in found if each.guest != WITHDRAWS]
    return bool(warned) and all(
        each.is_logged and each.migration == VmmMigration.COMPLETED.value and each.lost
        for each in warned
    )


def withdrawal_saves(found: Iterable[FailedLookup]) -> bool:
    """The guest that writes 0 loses nothing, as it does not migrate."""
    withdrawn = [each for each in found if each.guest == WITHDRAWS]
    return bool(withdrawn) and not any(
        each.lost or each.migration == VmmMigration.COMPLETED.value for each in withdrawn
    )


def rest_is_lost(found: Iterable[FailedLookup]) -> bool:
    """The notifier ends at the failed page: that page and those behind it are lost, no others."""
    return all(each.lost == PAGES - each.step for each in found if each.guest != WITHDRAWS)


def lookup_evidence(found: Iterable[FailedLookup]) -> tuple[Evidence, ...]:
    """A line for each guest and page."""
    return tuple(
        Evidence(
            f"{each.guest}: lookup fails at page {each.step} of {PAGES}",
            each.lost,
            "pages lost",
            f"{'WARN in the log' if each.is_logged else 'nothing in the log'}; migration "
            f"{each.migration}",
        )
        for each in found
    )
