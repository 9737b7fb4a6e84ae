# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar that appears on a terminal only, and only when the work takes longer than 2 s."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from guestemu.cli import console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

DELAY_S: Final = 2.0
REFRESH_S: Final = 0.1


class LateProgress(ABC):
    """`total` is what counts as all of it, None where that is unknown. Subclasses give the columns
    and call `_show` after every piece of work."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._next = time.monotonic() + DELAY_S if console.is_live() else float("inf")
        self._shown: Progress | None = None

    @abstractmethod
    def _columns(self) -> tuple[ProgressColumn, ...]:
        """The columns of the bar."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown is not None:
            self._shown.stop()

    def _show(self, done: int, **fields: int) -> None:
        """`done` of the total; `fields` are for the columns."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REFRESH_S
        if self._shown is None:
            from rich.progress import Progress

            self._shown = Progress(*self._columns(), console=console.notes(), transient=True)
            task_id = self._shown.add_task("", total=self._total)
            self._shown.tasks[task_id].fields.update(fields)
            self._shown.start()
        task = self._shown.tasks[0]
        task.fields.update(fields)
        self._shown.update(task.id, completed=done)
