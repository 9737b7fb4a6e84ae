# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress bar of `guestemu dma`: on a terminal, and only when it takes longer than 2 s."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from guestemu.cli import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_S: Final = 2.0
REFRESH_S: Final = 0.1


class DmaProgress:
    """`total` is the size of the input in bytes, None where there is none (a pattern)."""

    def __init__(self, total: int | None) -> None:
        self._total = total
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

    def update(self, done: int, events: int, pages: int) -> None:
        """`done` bytes of the input are read, `events` replayed, `pages` converted."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REFRESH_S
        if self._shown is None:
            self._shown = self._start()
        progress, task = self._shown
        progress.update(task, completed=done, events=events, pages=pages)

    def _start(self) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[events]} events, {task.fields[pages]} pages converted"),
        )
        progress = Progress(*columns, console=console.notes(), transient=True)
        task = progress.add_task("", total=self._total, events=0, pages=0)
        progress.start()
        return progress, task
