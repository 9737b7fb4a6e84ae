# SPDX-License-Identifier: GPL-2.0-or-later
"""Every operation ends: none uses up its budget, shuts the vCPU down or leaves RAM.

An exception that the guest's own handler cannot fix is not judged: programs may unmap pages.
"""

from __future__ import annotations

from collections.abc import Iterator

from guestemu.checks.base import OpView, Violation
from guestemu.machine.exits import BudgetExhausted, Shutdown


class ProgressCheck:
    """No endless loop and no triple fault (A14, M8)."""

    name = "progress"

    def after(self, view: OpView) -> Iterator[Violation]:
        """See the class."""
        end = view.outcome.end
        if isinstance(end, BudgetExhausted):
            yield Violation(
                self.name,
                view.index,
                f"still running at {end.rip:#x} after {view.guest.budget} basic blocks and "
                f"{len(view.exits)} exits",
                "A14, M8",
            )
        elif isinstance(end, Shutdown):
            yield Violation(
                self.name, view.index, f"the vCPU shut down at {end.rip:#x}: {end.reason}"
            )
