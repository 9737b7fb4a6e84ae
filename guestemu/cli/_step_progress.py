# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar over a known number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestemu.cli._late_progress import LateProgress

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class StepProgress(LateProgress):
    """Counts `total` steps; `advance` after each."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._done = 0

    def advance(self) -> None:
        """One step is done."""
        self._done += 1
        self._show(self._done)

    def _columns(self) -> tuple[ProgressColumn, ...]:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

        return BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
