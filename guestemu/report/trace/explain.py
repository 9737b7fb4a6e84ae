# SPDX-License-Identifier: GPL-2.0-or-later
"""What a violation means, and what should have held, in a sentence each, by the violation's name:
the check's own words."""

from __future__ import annotations

from typing import Final

from guestemu.checks.base import demands, explanations

_RUN: Final = {
    "host-failed": "A guest can do this to its VMM: the defect is the host's.",
    "time-up": "The budgets count blocks of the guest; this bound is of time, beside them.",
}
"""Of violations that no check sees: the run ends by them."""

_RUN_DEMANDS: Final = {
    "host-failed": "The host answers every exit of the guest, and raises nothing.",
    "time-up": "Every operation ends within its bound of time.",
}


def explain(check: str) -> str:
    """Why a violation of `check` matters; empty for one without an explanation."""
    return explanations().get(check) or _RUN.get(check, "")


def demand(check: str) -> str:
    """What the check that found a violation of this name demands; empty for an unknown name."""
    return demands().get(check) or _RUN_DEMANDS.get(check, "")
