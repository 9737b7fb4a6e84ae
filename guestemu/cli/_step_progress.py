# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar over a known number of steps: on a terminal, and only after 2 s."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from guestemu.cli import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_S: Final = 2.0
REFRESH_S: Final = 0.1


class StepProgress:
    """Counts `total` steps; `advance` after each."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._next = time.monotonic() + DELAY_S if console.is_live() else float("inf")
        self._shown: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown is not None:
            self._shown[0].stop()

    def advance(self) -> None:
        """One step is done."""
        self._done += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REFRESH_S
        if self._shown is None:
            self._shown = self._start()
        progress, task = self._shown
        progress.update(task, completed=self._done)

    def _start(self) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=console.notes(), transient=True)
        task = progress.add_task("", total=self._total, completed=self._done)
        progress.start()
        return progress, task
