# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's dma_alloc_attrs() costs what the snippet's and the model's cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from guestemu.claims.claim import Lab
from guestemu.claims.coherent_memory import boot_regions
from guestemu.claims.result import Verdict
from guestemu.dma.clearing import Clearing
from guestemu.dma.cost import Conversion
from guestemu.dma.emulate import Emulation
from guestemu.dma.events import Event
from guestemu.dma.model import ModelRun
from guestemu.dma.run import DmaRun
from guestemu.dma.source import open_trace
from guestemu.program.program import Header
from guestemu.testbed import build_testbed

TRACE = Path(__file__).parents[1] / "data" / "dma-traces" / "linux-6.12-q35-churn.trace"
EVENTS = 90
MEMORY = 128


class PerEvent:
    """Conversions of each event: direction, pages changed, hypercalls."""

    def __init__(self) -> None:
        self.events: list[list[tuple[bool, int, int]]] = []

    def begin(self, event: Event, /) -> None:
        self.events.append([])

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        if self.events and not is_pool:
            self.events[-1].append((conversion.private, conversion.changed, conversion.hypercalls))

    def cleared(self, gfn: int, size: int, /) -> None:
        """Not looked at."""


def per_event(events: list[Event], make: Callable[[PerEvent], DmaRun]) -> PerEvent:
    log = PerEvent()
    run = make(log)
    run.steps(events)
    assert not run.counts().violation_count
    assert run.analyze().total.never_cleared_pages == 0
    return log


def test_hypercalls_per_allocation_agree(series: str, image_of: Callable[[str], Path]) -> None:
    with open_trace(TRACE) as reader:
        events = list(islice(reader, EVENTS))

    def machine(guest: str) -> PerEvent:
        bed = build_testbed(Header(guest=guest, memory=MEMORY))
        return per_event(events, lambda log: Emulation(bed, observers=(log,)))

    kernel = machine(f"linux:{image_of(series)}")
    snippet = machine(f"snippet:{series}")
    model = per_event(events, lambda log: ModelRun(series, MEMORY, observers=(log,)))
    assert kernel.events == snippet.events == model.events
    assert sum(map(len, kernel.events)) > EVENTS // 2


def test_a_kernel_clears_what_it_allocates_and_poisons_what_it_returns(
    series: str, image_of: Callable[[str], Path]
) -> None:
    paths = {
        path.name: (path.pages, path.rewritten)
        for path in Clearing(f"linux:{image_of(series)}").paths()
    }
    assert paths["dma_alloc_coherent"] == (3, 3)
    assert paths["dma_free_coherent"] == (3, 0)
    assert paths["atomic pool expansion"] == (96, 0)
    assert paths["atomic pool hand-out"] == (1, 1)
    pages, rewritten = paths[".bss..decrypted tail"]
    assert pages == rewritten > 500


def test_c12_is_confirmed(series: str, image_of: Callable[[str], Path]) -> None:
    result = boot_regions(Lab((f"linux:{image_of(series)}",)))
    assert result.verdict is Verdict.CONFIRMED
