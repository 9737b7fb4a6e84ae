# SPDX-License-Identifier: GPL-2.0-or-later
"""What a violation means for the guest, in a sentence, by the name of the check."""

from __future__ import annotations

from typing import Final

_EXPLANATIONS: Final = {
    "status": "The host migrates a page by its own record: a private page that it takes for shared "
    "(or the reverse) arrives as garbage.",
    "frames": "A page of the range now maps another frame; a caller that clears its buffer "
    "overwrites foreign memory.",
    "results": "The contract and the real KVM give another answer here.",
    "record": "The host's record is not what it was told: the page will be migrated with the wrong "
    "status.",
    "migration-control": "The host's idea of the guest's consent is not the guest's.",
    "resources": "A guest can do this to its host at will.",
    "ready": "A migration may start now and would move pages with the wrong status.",
    "free-pages": "The next owner of the page believes it is private and the host can read it.",
    "lost_strict": "The destination does not hold what the guest wrote last: its bytes were of "
    "another status than the one by which they were sent last.",
    "lost_defined": "No change of the C-bit came after that write, so the guest may rely on it.",
    "host-failed": "A guest can do this to its VMM: the defect is the host's.",
    "time-up": "The budgets count blocks of the guest; this bound is of time, beside them.",
    "progress": "The CPU does not come out of this operation.",
}


def explain(check: str) -> str:
    """Why a violation of `check` matters; empty for a check that is not the project's own."""
    return _EXPLANATIONS.get(check, "")
