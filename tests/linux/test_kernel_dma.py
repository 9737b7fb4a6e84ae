# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's dma_alloc_attrs() costs what the snippet's and the model's cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.errno import ENOSYS
from guestemu.dma.clearing import Clearing
from guestemu.dma.cost import Conversion
from guestemu.dma.emulate import Emulation
from guestemu.dma.events import Event
from guestemu.dma.model import ModelRun
from guestemu.dma.run import DmaRun
from guestemu.dma.source import open_trace
from guestemu.program.program import Header
from guestemu.program.text import parse_text
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import build_testbed
from guestemu.study.claims.claim import Lab
from guestemu.study.claims.coherent_memory import boot_regions
from guestemu.study.claims.result import ClaimVerdict
from tests.linux.conftest import Bench

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


def test_c12_is_conditional(series: str, image_of: Callable[[str], Path]) -> None:
    result = boot_regions(Lab((f"linux:{image_of(series)}",)))
    assert result.verdict is ClaimVerdict.CONDITIONAL


def test_pages_of_the_atomic_pool_come_back(kernel: Bench) -> None:
    """6.1 and 6.12 return a struct page; some series do not (docs/findings.md)."""
    guest = kernel.guest
    for may_block in (True, False):
        allocated = guest.dma_alloc_pages(PAGE_SIZE, may_block)
        assert allocated.value is not None
        assert 0 < allocated.value < MEMORY << 20
        assert guest.dma_free_pages(Gpa(allocated.value)).value == 0
        assert guest.dma_free_pages(Gpa(allocated.value)).value == 0


def test_a_snippet_has_no_dma_alloc_pages() -> None:
    program = parse_text(
        "guestemu-program 1\nguest snippet:6.12\n---\n"
        "dma_alloc_pages slot=1 size=4096 atomic=1\ndma_free_pages slot=1\n",
        "program",
    )
    allocated, freed = run_program(program).outcome.results
    assert (allocated.outcome.value, freed.outcome.value) == (-ENOSYS, 0)
