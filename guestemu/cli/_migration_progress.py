# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress bar of `guestemu explore kernel-migration`, and Ctrl-C between two migrations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from guestemu.cli._interrupts import Interrupts
from guestemu.cli._late_progress import LateProgress
from guestemu.migration.sweep.run import SweepWatcher

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class _Bar(LateProgress):
    def __init__(self, name: str, total: int) -> None:
        super().__init__(total)
        self._name = name
        self._done = 0
        self._start = time.monotonic()

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        seconds = time.monotonic() - self._start
        self._show(self._done, rate=round(self._done / seconds) if seconds else 0)

    def _columns(self) -> tuple[ProgressColumn, ...]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        return (
            TextColumn(self._name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} migrations/s"),
            TimeRemainingColumn(),
        )


class ProgressWatcher(SweepWatcher):
    """A bar for each window; Ctrl-C waits for the migration that runs."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._bar: _Bar | None = None

    def begin(self, name: str, total: int) -> None:
        """See `SweepWatcher`."""
        self.close()
        self._bar = _Bar(name, total)

    def before(self) -> None:
        """See `SweepWatcher`."""
        self._interrupts.hold()

    def after(self) -> None:
        """See `SweepWatcher`."""
        if self._bar is not None:
            self._bar.advance()
        self._interrupts.release()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
