# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows a campaign while it runs: a live screen on a terminal, a line every few seconds elsewhere;
and its summary. All of it is for people and goes to stderr, except the summary's lines."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from guestemu.campaign.figures import Figures

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_LINE_EVERY: Final = 5.0
_SHOWN_FINDINGS: Final = 8


def duration(seconds: float) -> str:
    """`seconds` as people say it: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def status_line(figures: Figures) -> str:
    """One line of figures."""
    found = len(figures.findings)
    return (
        f"{duration(figures.seconds)}: {figures.executions:,} executions, "
        f"{figures.execs_per_second:,.0f}/s, {figures.distinct_programs:,} distinct programs, "
        f"corpus {figures.corpus_size}, "
        f"{figures.guest_blocks} guest blocks, {figures.model_states} model states, "
        f"{found} finding{'' if found == 1 else 's'}"
    )


def space_line(figures: Figures) -> str:
    """How much of an exhaustive campaign's space was run."""
    if figures.is_exhausted:
        return f"exhausted: all {figures.space or 0:,} programs of the space have run"
    return f"not exhausted: the space has {figures.space or 0:,} programs; go on with --resume"


class Screen:
    """`show` the figures as often as there are new ones; a context manager."""

    def __init__(self, title: str, console: Console, is_live: bool) -> None:
        self._title = title
        self._console = console
        self._is_live = is_live
        self._live: Live | None = None
        self._next_line = time.monotonic() + _LINE_EVERY

    def __enter__(self) -> Screen:
        if self._is_live:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, figures: Figures) -> None:
        """The figures now."""
        if self._live is not None:
            self._live.update(self._render(figures))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY
            self._console.print(status_line(figures), soft_wrap=True)

    def _render(self, figures: Figures) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 3))
        since_new = max(figures.seconds - figures.last_new_s, 0.0)
        rows = (
            ("programs", f"{figures.distinct_programs:,}", "", ""),
            ("time", duration(figures.seconds), "corpus", f"{figures.corpus_size:,}"),
            ("executions", f"{figures.executions:,}", "guest blocks", f"{figures.guest_blocks:,}"),
            (
                "per second",
                f"{figures.execs_per_second:,.0f}",
                "model states",
                f"{figures.model_states:,}",
            ),
            (
                "findings",
                str(len(figures.findings)),
                "nothing new for",
                duration(since_new),
            ),
        )
        for row in rows:
            table.add_row(*row)
        parts: list[RenderableType] = [table]
        if len(figures.workers) > 1 or figures.infrastructure:
            parts.append(Text())
            parts += (
                Text(
                    f"worker {worker.index}  {worker.executions:>12,}  "
                    f"{worker.execs_per_second:>9,.0f}/s"
                    + (f"  started again {worker.restarts}×" if worker.restarts else "")
                    + ("  done" if worker.is_done else "")
                )
                for worker in figures.workers
            )
        if figures.findings:
            parts.append(Text())
            shown = figures.findings[-_SHOWN_FINDINGS:]
            parts += (Text(f"{found.key}  ×{found.count:,}", style="red") for found in shown)
        return Panel(Group(*parts), title=self._title, title_align="left", expand=False)
