# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares policies on one trace: what each saves, and what memory it leaves shared for that."""

from __future__ import annotations

from collections.abc import Sequence

from guestemu.dma.events import Event
from guestemu.dma.model import ModelRun
from guestemu.dma.policies import KERNEL
from guestemu.dma.policy_figures import PolicyFigures


class Comparison:
    """Runs the kernel's way and `policies` side by side on the model, event by event.

    Generation and memory as for `ModelRun`; raises its `InputError`.
    """

    def __init__(self, generation: str, memory: int, policies: tuple[str, ...]) -> None:
        names = dict.fromkeys((KERNEL, *policies))
        self._runs = {name: ModelRun(generation, memory, policy=name) for name in names}

    def step(self, event: Event) -> None:
        """Replays one event under every policy."""
        self.steps((event,))

    def steps(self, events: Sequence[Event]) -> None:
        """Replays events under every policy."""
        for run in self._runs.values():
            run.steps(events)

    def result(self) -> dict[str, PolicyFigures]:
        """The figures so far by policy, the kernel's first."""
        reports = {name: run.report() for name, run in self._runs.items()}
        analyses = {
            name: report.analysis for name, report in reports.items() if report.analysis is not None
        }
        base = analyses[KERNEL]
        figures = {}
        for name, analysis in analyses.items():
            total = analysis.total
            requested = reports[name].requested
            figures[name] = PolicyFigures(
                conversions=total.conversions,
                hypercalls=total.hypercalls,
                pages_converted=total.pages_converted,
                splits=total.splits,
                peak_shared_pages=analysis.shared.peak,
                mean_shared_pages=round(analysis.shared.mean, 3),
                no_memory=0 if requested is None else requested.no_memory,
                conversions_saved=base.total.conversions - total.conversions,
                hypercalls_saved=base.total.hypercalls - total.hypercalls,
                extra_shared_pages=round(analysis.shared.mean - base.shared.mean, 3),
            )
        return figures
