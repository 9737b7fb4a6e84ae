# SPDX-License-Identifier: GPL-2.0-or-later
"""The choices inside the order model, as switches: which of them its figures depend on."""

from __future__ import annotations

import msgspec


class Rules(msgspec.Struct, frozen=True):
    """Every switch off is the model of G.2; each one on is another reading of it.

    They exist to measure how far the table rests on a choice; `docs/explore.md` has the figures.
    """

    starts_clean: bool = False
    """The page is not marked dirty at the start."""

    pte_sets_dirty: bool = False
    """A change of the C-bit marks the page dirty (one of the two proposals of G.1 R3)."""

    hypercall_sets_dirty: bool = False
    """A status change marks the page dirty."""

    clear_is_unconditional: bool = False
    """CLEAR clears the log also for a page that is not in the snapshot."""

    snapshot_is_kept: bool = False
    """A sent page stays in the snapshot, so every later pass sends it again."""

    guest_ends_on_source: bool = False
    """STOP comes only after the guest's last step."""

    final_reuses_status: bool = False
    """The final pass does not fetch the status again."""

    final_sends_always: bool = False
    """The final pass sends the page although it is clean."""

    final_resends_changed: bool = False
    """The final pass also sends a page whose status differs from the one it was last sent with
    (G.3 claim C6)."""

    final_pass_is_missing: bool = False
    """Nothing is sent after STOP."""

    plain_survives_private_send: bool = False
    """A private send of plain bytes delivers them, instead of garbage."""

    source_key_is_readable: bool = False
    """The destination's key decrypts what the source's key encrypted."""

    stale_status_is_lost: bool = False
    """Lost is also a page whose last synchronised status is not that of its final PTE."""

    lost_only_if_stale: bool = False
    """Lost is only a page whose last synchronised status is not that of its final PTE."""

    compared_at_resume_only: bool = False
    """The page is compared when the destination resumes the guest, not after its last step."""

    compared_at_resume_too: bool = False
    """The page is compared at both moments; lost at one is lost."""

    cut_reads_success: bool = False
    """STOP between two chunks of a MapGPA makes the guest read success for the rest, which is
    converted on no host: that page counts as lost. KVM up to 7.3 (T29); else it asks again."""

    undefined_from_hypercall: bool = False
    """For `lost_defined`: content is undefined from a notification to the next write (claim C7),
    instead of from a PTE flip to the next write."""
