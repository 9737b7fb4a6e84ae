# SPDX-License-Identifier: GPL-2.0-or-later
"""What a violation means for the guest, in a sentence, by its name: the check's own words."""

from __future__ import annotations

from typing import Final

from guestemu.checks.base import explanations

_RUN: Final = {
    "host-failed": "A guest can do this to its VMM: the defect is the host's.",
    "time-up": "The budgets count blocks of the guest; this bound is of time, beside them.",
}
"""Of violations that no check sees: the run ends by them."""


def explain(check: str) -> str:
    """Why a violation of `check` matters; empty for one without an explanation."""
    return explanations().get(check) or _RUN.get(check, "")
