# SPDX-License-Identifier: GPL-2.0-or-later
"""What to do when a notification fails, before and during a migration: C18, C19, C20.

C18 runs QEMU's migration code. C19 and C20 migrate our own guest to a second machine with another
key; the host answers some of its notifications with an error and records nothing, or the notifier's
lookup fails, also on real kernels. Facts A13, D28, R5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, U64_MASK
from guestemu.abi.errno import EBUSY, EINVAL
from guestemu.checks.lost import LOST_DEFINED
from guestemu.host.qemu.blockers import (
    GUEST_BLOCKER,
    GuestReadyBlocker,
    MigrationBlocked,
    MigrationBlockers,
)
from guestemu.host.qemu.precopy import Phase
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.failed_lookup import (
    WITHDRAWS,
    FailedLookup,
    failed_lookups,
    lookup_evidence,
    rest_is_lost,
    warning_loses,
    withdrawal_saves,
)
from guestemu.study.claims.guest_kinds import (
    range_evidence,
    refusal_evidence,
    refused_conversions,
    refused_ranges,
    rest_is_of_use,
    unread_means_lost,
)
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide
from guestemu.study.claims.vmm import PATCH_SET, make_migration
from guestemu.study.claims.witness_text import program_witness

GUEST: Final = "snippet:6.1"
PAGES: Final = 8
FAILED: Final = 5

_VALUE: Final = 0x5A
_READY: Final = 1


class BlockerRun(msgspec.Struct, frozen=True):
    """A blocker added while a migration runs: the result, how the migration ended, whether the next
    one is refused after the blocker was added again."""

    while_running: int
    ended: Phase
    next_is_refused: bool


def run_blocker(blockers: MigrationBlockers) -> BlockerRun:
    """Starts a migration, adds a blocker in its first pass, lets it go on; adds it once more."""
    migration = make_migration(blockers)
    migration.start()
    migration.step()
    added = blockers.add(GUEST_BLOCKER)
    migration.run_pass()
    migration.stop()
    migration.complete()
    blockers.add(GUEST_BLOCKER)
    try:
        make_migration(blockers).start()
    except MigrationBlocked:
        return BlockerRun(added, migration.phase, True)
    return BlockerRun(added, migration.phase, False)


def blocker_while_running(
    _lab: Lab, kind: type[MigrationBlockers] = MigrationBlockers
) -> ClaimResult:
    """C18: migrate_add_blocker() in a running migration."""
    run = run_blocker(kind())
    goes_on = run.ended is Phase.COMPLETED
    return ClaimResult(
        verdict=decide(
            confirmed=run.while_running == -EBUSY and goes_on and run.next_is_refused,
            refuted=not goes_on,
        ),
        evidence=(
            Evidence("blocker added in the first pass", run.while_running, how="result"),
            Evidence("the migration", run.ended.value, how="went on to its end"),
            Evidence(
                "a migration after it",
                "refused" if run.next_is_refused else "started",
                how="the blocker was added again",
            ),
        ),
        guests=(f"QEMU model {PATCH_SET}",),
        witnesses=(
            ClaimWitness(
                "migrate; migrate_add_blocker() in the first pass: -16 (EBUSY); the migration "
                "completes"
            ),
        ),
    )


# Failed notifications ---------------------------------------------------------------------------

_MIGRATE: Final = (
    Op(OpKind.MIGRATE_START, (PAGES, 0)),
    Op(OpKind.HOST_DIRTY_FETCH, (1,)),
    Op(OpKind.HOST_STATUS_COPY),
    Op(OpKind.HOST_SEND, (0,)),
    Op(OpKind.MIGRATE_STOP),
)
_READS: Final = tuple(Op(OpKind.READ, (0,), page=page) for page in range(PAGES))


def _convert(failed: int) -> tuple[Op, ...]:
    """The pages become shared, the host refuses the first `failed` reports, the guest fills all."""
    refuse = (Op(OpKind.ANSWER, (-EINVAL & U64_MASK, failed)),) if failed else ()
    convert = Op(OpKind.SET_MEMORY_DECRYPTED, (PAGES, 0))
    return (*refuse, convert, Op(OpKind.WRITE, (_VALUE, 0, PAGES * PAGE_SIZE)))


def _lost(bed: Testbed, ops: tuple[Op, ...]) -> frozenset[int]:
    """Runs `ops`, then reads all pages: those in which defined content is lost."""
    outcome = bed.run((*ops, *_READS))
    first = len(ops)
    return frozenset(
        violation.op - first for violation in outcome.violations if violation.check == LOST_DEFINED
    )


def one_failure(lab: Lab, failed: int = FAILED) -> ClaimResult:
    """C20: which pages are lost when the first k of them were not notified, for each k; and when
    the lookup of one fails, at which the notifier ends; and a refusal in a range, by guest kind."""
    bed = build_testbed(Header(guest=GUEST))
    lost = {count: _lost(bed, (*_convert(count), *_MIGRATE)) for count in {0, 1, failed, PAGES}}
    again = Op(OpKind.SET_MEMORY_ENCRYPTED, (PAGES, 0))
    fill = Op(OpKind.WRITE, (_VALUE, 0, PAGES * PAGE_SIZE))
    healed = _lost(bed, (*_convert(failed), again, fill, *_MIGRATE))
    bed.close()
    lookups = tuple(each for each in failed_lookups(lab.kernels) if each.guest != WITHDRAWS)
    exactly = all(pages == frozenset(range(count)) for count, pages in lost.items())
    ranges = refused_ranges(lab.kernels)
    exactly = exactly and rest_is_lost(lookups) and rest_is_of_use(ranges)
    spreads = any(len(pages) > count for count, pages in lost.items())
    return ClaimResult(
        verdict=decide(
            confirmed=spreads,
            refuted=not spreads and not lost[1],
            conditional=exactly and not healed,
        ),
        condition=(
            "the guest still uses such a page as shared when it is migrated: exactly the pages "
            "that were not notified are lost, all others arrive, and one that was made private "
            "again before is not lost"
        ),
        evidence=(
            *(
                Evidence(
                    f"{count} of {PAGES} notifications failed",
                    len(lost[count]),
                    "pages lost",
                    f"by {LOST_DEFINED}; these pages: {_numbers(lost[count])}",
                )
                for count in sorted(lost)
            ),
            Evidence(
                f"{failed} failed, all made private again and filled before the migration",
                len(healed),
                "pages lost",
            ),
            *lookup_evidence(lookups),
            *range_evidence(ranges),
        ),
        guests=_tested(lookups),
        witnesses=(program_witness(Header(guest=GUEST), (*_convert(1), *_MIGRATE, *_READS[:2])),),
        remark="A failed lookup loses more than one page: the notifier gives up there, and the "
        "pages behind it are also lost. Only SEV and SEV-ES guests report the rest behind a "
        "refusal: KVM stops a TD's call there, and an SNP guest ends itself."
        if any(each.lost > 1 for each in lookups)
        else "",
    )


def _numbers(pages: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(pages))) or "none"


def warn_is_not_enough(
    lab: Lab,
    failed: int = FAILED,
    look_up: Callable[[tuple[str, ...]], tuple[FailedLookup, ...]] = failed_lookups,
) -> ClaimResult:
    """C19: WARN alone, MIGRATION_CONTROL = 0 before the migration, and during it with a VMM that
    looks only when it starts and with one that aborts; the failed lookup, which does warn; and what
    each guest kind makes of a refusal."""
    bed = build_testbed(Header(guest=GUEST))
    ready = Op(OpKind.INIT_PLATFORM, (0,))
    withdraw = Op(OpKind.CPU_OFFLINE)
    warn = _lost(bed, (ready, *_convert(failed), *_MIGRATE))
    bed.run((ready, *_convert(failed), withdraw))
    may_start = bed.host.migration_ready
    bed.run((ready, *_MIGRATE[:4], *_convert(failed), withdraw))
    may_go_on = bed.host.migration_ready
    late_pass = (*_MIGRATE[:4], *_convert(failed), withdraw, *_MIGRATE[1:])
    during = _lost(bed, (ready, *late_pass))
    bed.close()
    added = _withdraw_while_running()
    stops_start, aborts = not may_start, not may_go_on
    lookups = look_up(lab.kernels)
    refusals = refused_conversions(lab.kernels)
    warning_fails = bool(warn) and warning_loses(lookups) and unread_means_lost(refusals)
    remedy_works = stops_start and aborts and withdrawal_saves(lookups)
    return ClaimResult(
        verdict=decide(
            confirmed=warning_fails and remedy_works,
            refuted=not warn and not any(each.lost for each in lookups),
        ),
        evidence=(
            Evidence("WARN and go on", len(warn), "pages lost", f"{failed} of {PAGES} failed"),
            Evidence(
                "MIGRATION_CONTROL = 0 before the migration",
                "not started" if stops_start else "started",
                how="the guest writes 0 after the failure",
            ),
            Evidence(
                "0 while it runs, VMM looks only at the start",
                len(during),
                "pages lost",
                f"migrate_add_blocker() gives {added}",
            ),
            Evidence(
                "0 while it runs, VMM aborts on it",
                "aborted" if aborts else "went on",
                how="the write is seen before the last pass",
            ),
            *lookup_evidence(lookups),
            *refusal_evidence(refusals),
        ),
        guests=_tested(lookups),
        witnesses=(program_witness(Header(guest=GUEST), (*_convert(failed), *_MIGRATE, *_READS)),),
        remark="A guest that writes MIGRATION_CONTROL = 0 is never migrated again (C16). In the "
        "first four lines the host refuses; real kernels do not warn then (C21). At a failed "
        "lookup they warn, and do not report the rest of the range. By guest kind: SEV and SEV-ES "
        "guests go on and lose the page, a TD's caller reads the error, an SNP guest ends. "
        "The whole matrix: `guestemu ledger`.",
    )


def _tested(lookups: tuple[FailedLookup, ...]) -> tuple[str, ...]:
    guests = (GUEST, *(each.guest for each in lookups if each.guest != WITHDRAWS))
    return tuple(dict.fromkeys(guests))


def _withdraw_while_running() -> int:
    """What QEMU's blocker of the 2021 set answers to 0 in a running migration, if it looks at 0."""
    blockers = MigrationBlockers()
    guest = GuestReadyBlocker(blockers, repaired=True)
    guest.write(_READY)
    migration = make_migration(blockers)
    migration.start()
    return guest.write(0)


CLAIMS: Final = (
    Claim(
        "C18",
        "migrate_add_blocker() cannot stop an ongoing migration.",
        "Ashish Kalra, 14 May 2021: 'i don't think it will force stop an ongoing migration'",
        blocker_while_running,
        real_test="QEMU itself, with migrate_add_blocker() from a device while a migration runs",
    ),
    Claim(
        "C19",
        "A WARN is not enough when a notification fails: the error has to be propagated.",
        "Borislav Petkov, 14 May 2021: 'WARN is a good first start but in some configurations "
        "those splats don't even get shown as people don't look at dmesg, etc.'",
        warn_is_not_enough,
    ),
    Claim(
        "C20",
        "A single page whose notification fails has to stop the migration; notifying the others "
        "is of no use.",
        "Ashish Kalra, 14 May 2021: 'even if a single guest page encryption status cannot be "
        "notified'",
        one_failure,
    ),
)
