# SPDX-License-Identifier: GPL-2.0-or-later
"""In which order a host fetches the dirty log and the page status: C1, C2, C3, C5, C25.

Counted on the order model of docs/explore.md; the claims are of G.3, the positions of G.1 R1 to R3.
Every experiment takes the rules of the model, so that a test can change one and see the verdict go.
"""

from __future__ import annotations

from typing import Final

from guestemu.migration.model.rules import Rules
from guestemu.study.claims.cells import (
    LOOSE_ORDERS,
    TIGHT_ORDERS,
    InterleavingCell,
    count,
    count_rows,
    evidence,
    machine_check,
    witness,
)
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.result import ClaimResult, Evidence, decide

_ALL: Final = (1, 2, 3, 4, 5, 6)
_DEFAULT: Final = Rules()


def _lost(cells: tuple[InterleavingCell, ...]) -> int:
    return sum(cell.lost for cell in cells)


def final_sync(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C1: what the final sync settles, and under which conditions only."""
    good = count_rows(TIGHT_ORDERS, "S1", rules) + count_rows(TIGHT_ORDERS, "S2", rules)
    loose = count_rows(LOOSE_ORDERS, "S1", rules) + count_rows(LOOSE_ORDERS, "S2", rules)
    early = count_rows(_ALL, "S1c", rules)
    kept = count_rows(_ALL, "S3", rules)
    without = count(1, "S2", Rules(final_reuses_status=True))
    needs_order = all(cell.lost for cell in loose)
    needs_write_after = all(cell.lost for cell in early)
    needs_rewrite = all(cell.lost for cell in kept)
    everything = good + loose + early + kept
    machine = machine_check(everything)
    is_needed = needs_order and needs_write_after and needs_rewrite
    return ClaimResult(
        verdict=decide(
            confirmed=not _lost(everything),
            refuted=_lost(good) > 0,
            conditional=not _lost(good) and is_needed and machine.agrees,
        ),
        condition=(
            "the dirty log is fetched (and cleared) before the status, the guest writes only after "
            "the hypercall, and it writes every page anew after a change"
        ),
        evidence=(
            Evidence(
                "all conditions met: orders 1, 4, 5, 6, scripts S1 and S2",
                _lost(good),
                "losing interleavings",
                f"of {sum(cell.tally.total for cell in good)}; guestemu explore --table",
            ),
            *(evidence(cell, "status before log") for cell in loose),
            evidence(early[0], "write before the hypercall"),
            evidence(kept[0], "flipped there and back, not rewritten"),
            evidence(without, "without the final sync of the status"),
            *machine.evidence,
        ),
        guests=machine.guests,
        witnesses=witness(loose[0]) + witness(early[0]) + witness(kept[0]),
    )


def status_first(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C2: the order that Gilbert suggested against the one of the patch."""
    log_first = count(1, "S1", rules), count(1, "S2", rules)
    status_first_ = count(2, "S1", rules), count(2, "S2", rules)
    machine = machine_check(status_first_ + log_first)
    return ClaimResult(
        verdict=decide(
            confirmed=_lost(log_first) > 0 and not _lost(status_first_),
            refuted=_lost(status_first_) > 0 and not _lost(log_first) and machine.agrees,
        ),
        evidence=(*(evidence(cell) for cell in status_first_ + log_first), *machine.evidence),
        guests=machine.guests,
        witnesses=witness(status_first_[0]),
    )


def either_order(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C3: whether the two orders lose in the same cells."""
    pairs = [(count(1, name, rules), count(2, name, rules)) for name in ("S1", "S2")]
    differing = [pair for pair in pairs if (pair[0].lost > 0) != (pair[1].lost > 0)]
    machine = machine_check(cell for pair in pairs for cell in pair)
    return ClaimResult(
        verdict=decide(confirmed=not differing, refuted=bool(differing) and machine.agrees),
        evidence=(*(evidence(cell) for pair in pairs for cell in pair), *machine.evidence),
        guests=machine.guests,
        witnesses=witness(pairs[0][1]),
        remark=(
            "The patch that was discussed fetches the log first, and loses nothing of these two "
            "scripts."
        )
        if not any(pair[0].lost for pair in pairs)
        else "",
    )


def log_before_status(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C5: the status after the dirty log, with logs that clear themselves and with those that are
    cleared in a second step."""
    clears_itself = count(1, "S1", rules), count(1, "S2", rules)
    between = count(3, "S1", rules), count(3, "S2", rules)
    after_clear = count(4, "S1", rules), count(4, "S2", rules)
    cells = clears_itself + between + after_clear
    machine = machine_check(cells)
    return ClaimResult(
        verdict=decide(
            confirmed=not _lost(cells),
            refuted=_lost(clears_itself) > 0,
            conditional=(
                not _lost(clears_itself + after_clear) and _lost(between) > 0 and machine.agrees
            ),
        ),
        condition=(
            "the log clears itself when it is fetched, or the status is fetched after the CLEAR "
            "and not between GET and CLEAR"
        ),
        evidence=(*(evidence(cell) for cell in cells), *machine.evidence),
        guests=machine.guests,
        witnesses=witness(between[0]),
    )


def notify_after_flip(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C25: S1 (hypercall after the flip) against S1b (before it), in every order."""
    after = count_rows(_ALL, "S1", rules)
    before = count_rows(_ALL, "S1b", rules)
    is_never_worse = all(b.lost <= a.lost for a, b in zip(after, before, strict=True))
    tight = [cell for cell in after + before if cell.row in TIGHT_ORDERS]
    is_safe = not _lost(tuple(tight))
    machine = machine_check(after + before)
    return ClaimResult(
        verdict=decide(
            confirmed=_lost(before) > _lost(after),
            refuted=is_never_worse and is_safe and machine.agrees,
        ),
        evidence=(
            *(evidence(cell) for pair in zip(after, before, strict=True) for cell in pair),
            *machine.evidence,
        ),
        guests=machine.guests,
        remark=(
            "Both places are safe where the log is fetched before the status, if the guest writes "
            "after both; where it is not, a hypercall before the flip loses in fewer interleavings."
        )
        if is_never_worse and is_safe
        else "",
    )


CLAIMS: Final = (
    Claim(
        "C1",
        "The final sync of the bitmap after the source VM is stopped makes the state right; "
        "hypercalls done before are contained in it.",
        "Ashish Kalra, 14 Feb 2020: 'there will also be a final sync of the page encryption "
        "bitmap'",
        final_sync,
    ),
    Claim(
        "C2",
        "The encryption bitmap should be synchronised before the dirty bitmap.",
        "David Gilbert, July 2019",
        status_first,
    ),
    Claim(
        "C3",
        "The order of the two synchronisations does not matter.",
        "Brijesh Singh, July 2019",
        either_order,
    ),
    Claim(
        "C5",
        "Fetching the C-bit log after the dirty log suffices.",
        "Steve Rutherford, 20 Feb 2020",
        log_before_status,
    ),
    Claim(
        "C25",
        "The guest has to make the hypercall after the flip, not before it.",
        "implied by the order of the patches: the hook is called after the page-table change",
        notify_after_flip,
    ),
)
