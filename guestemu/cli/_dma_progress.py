# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress bar of `guestemu dma`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestemu.cli._late_progress import LateProgress

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class DmaProgress(LateProgress):
    """`total` is the size of the input in bytes, None where there is none (a pattern)."""

    def update(self, done: int, events: int, pages: int) -> None:
        """`done` bytes of the input are read, `events` replayed, `pages` converted."""
        self._show(done, events=events, pages=pages)

    def _columns(self) -> tuple[ProgressColumn, ...]:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn

        text = "{task.fields[events]} events, {task.fields[pages]} pages converted"
        return BarColumn(), TaskProgressColumn(), TextColumn(text)
