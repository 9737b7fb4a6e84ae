# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a guest writes a page anew after changing it, and what if it does not: C4, C6, C7.

Counted on the order model of docs/explore.md; G.3, positions of G.1 R2 to R4.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.migration.model.rules import Rules
from guestemu.study.claims.cells import (
    LOOSE_ORDERS,
    MODEL,
    TIGHT_ORDERS,
    InterleavingCell,
    count_rows,
    evidence,
    machine_check,
)
from guestemu.study.claims.cells import witness as losing_witness
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.result import ClaimResult, Evidence, decide

_ALL: Final = (1, 2, 3, 4, 5, 6)
_DEFAULT: Final = Rules()


def _lost(cells: tuple[InterleavingCell, ...]) -> int:
    return sum(cell.lost for cell in cells)


def no_dirty_mark(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C4: rewriting callers, callers that do not, and what marking would change for each."""
    rewriting = count_rows(TIGHT_ORDERS, "S1", rules) + count_rows(TIGHT_ORDERS, "S2", rules)
    keeping = count_rows(TIGHT_ORDERS, "S3", rules)
    marked = msgspec.structs.replace(rules, pte_sets_dirty=True, hypercall_sets_dirty=True)
    loose = count_rows(LOOSE_ORDERS, "S1", rules)
    loose_marked = count_rows(LOOSE_ORDERS, "S1", marked)
    machine = machine_check(keeping)
    return ClaimResult(
        verdict=decide(
            confirmed=not _lost(rewriting) and not _lost(keeping),
            refuted=_lost(rewriting) > 0,
            conditional=not _lost(rewriting) and _lost(keeping) > 0 and machine.agrees,
        ),
        condition="the guest writes the page after the change and before it relies on its content",
        evidence=(
            Evidence(
                "rewritten after each change: orders 1, 4, 5, 6, scripts S1 and S2",
                _lost(rewriting),
                "losing interleavings",
                f"of {sum(cell.tally.total for cell in rewriting)}; guestemu explore --table",
            ),
            *(evidence(cell, "not rewritten") for cell in keeping),
            *(evidence(cell) for cell in loose),
            *(evidence(cell, "changes mark the page dirty") for cell in loose_marked),
            *machine.evidence,
        ),
        guests=machine.guests,
        witnesses=losing_witness(keeping[0]),
        remark=(
            "Marking the page at its flip and at its hypercall does not replace fetching the "
            "log before the status: orders 2 and 3 lose all the same."
        )
        if all(cell.lost for cell in loose_marked)
        else "",
    )


def resend_changed(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C6: the final pass sends again what was sent by another status."""
    resending = msgspec.structs.replace(rules, final_resends_changed=True)
    before = count_rows(LOOSE_ORDERS, "S1", rules) + count_rows(LOOSE_ORDERS, "S2", rules)
    net = count_rows(_ALL, "S1", resending) + count_rows(_ALL, "S2", resending)
    double = count_rows(_ALL, "S3", resending)
    early = count_rows(_ALL, "S1c", resending)
    lost_defined = sum(cell.lost_defined for cell in double)
    closes = _lost(before) > 0 and not _lost(net)
    return ClaimResult(
        verdict=decide(
            confirmed=closes and not _lost(double) and not _lost(early),
            refuted=_lost(net) > 0,
            conditional=closes and _lost(double) > 0 and not lost_defined and _lost(early) > 0,
        ),
        condition=(
            "data counts as lost at a change (a page that went there and back between two looks is "
            "not seen to have changed), and the guest writes only after the hypercall"
        ),
        evidence=(
            *(evidence(cell, "without the comparison") for cell in before),
            Evidence(
                "all orders, S1 and S2, with the comparison",
                _lost(net),
                "losing interleavings",
                f"of {sum(cell.tally.total for cell in net)}; --rule final-resends-changed",
            ),
            evidence(double[0], "there and back, not rewritten"),
            Evidence(
                "all orders, S3, with the comparison, by lost_defined",
                lost_defined,
                "losing interleavings",
                "content that was not rewritten since the last flip does not count",
            ),
            evidence(early[0], "write before the hypercall"),
        ),
        guests=(MODEL,),
        witnesses=losing_witness(double[0]) + losing_witness(early[0]),
    )


def lost_at_notification(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C7: there and back without a write, in every order, by both verdicts."""
    cells = count_rows(_ALL, "S3", rules)
    is_no_op_somewhere = any(not cell.lost for cell in cells)
    lost_defined = sum(cell.lost_defined for cell in cells)
    machine = machine_check(cells)
    return ClaimResult(
        verdict=decide(
            confirmed=not is_no_op_somewhere and not lost_defined and machine.agrees,
            refuted=is_no_op_somewhere,
        ),
        evidence=(
            *(evidence(cell) for cell in cells),
            Evidence(
                "the same, counting only data written after the last flip",
                lost_defined,
                "losing interleavings",
                "lost_defined of the six cells",
            ),
            *machine.evidence,
        ),
        guests=machine.guests,
        witnesses=losing_witness(cells[0]),
    )


CLAIMS: Final = (
    Claim(
        "C4",
        "A changed C-bit needs no dirty marking, since the guest writes the page again.",
        "Brijesh Singh, July 2019, and Ashish Kalra, Feb 2020; against it Steve Rutherford",
        no_dirty_mark,
    ),
    Claim(
        "C6",
        "Comparing old and new bitmaps at the blackout and sending changed pages again closes the "
        "hole.",
        "Brijesh Singh, Feb 2020",
        resend_changed,
        real_test="A KVM and QEMU built with the patch set, migrating a SEV guest that converts",
    ),
    Claim(
        "C7",
        "Data in the page must be regarded as lost at the notification; two flips are not a no-op.",
        "Sean Christopherson and Steve Rutherford, 8 Mar 2021",
        lost_at_notification,
    ),
)
