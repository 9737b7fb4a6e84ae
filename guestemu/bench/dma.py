# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of DMA traces: the model guest, and the snippet guest's conversions with their memset."""

from __future__ import annotations

import io
from itertools import islice
from typing import Final

from guestemu.bench.figure import Pair
from guestemu.bench.scene import BenchScene
from guestemu.dma.emulate import Emulation
from guestemu.dma.model import ModelRun
from guestemu.dma.patterns import parse_patterns, pattern_events
from guestemu.dma.run import BATCH_EVENTS
from guestemu.dma.synthetic import synthetic_events, trace_text
from guestemu.dma.trace import TraceReader
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

_EVENTS: Final = 20_000
_RESETS: Final = "e1000:scenario=reset,rounds=50"
_MEMORY: Final = 1024


def model(scene: BenchScene) -> Pair:
    """Events per second from an ftrace text through the model guest and the analysis, beside
    reading the text."""
    text = b"".join(trace_text(synthetic_events(_EVENTS)))

    def run(count: int) -> None:
        for _ in range(count):
            guest = ModelRun("6.1", _MEMORY)
            events = iter(TraceReader(io.BytesIO(text)))
            while batch := list(islice(events, BATCH_EVENTS)):
                guest.steps(batch)

    def parse(count: int) -> None:
        for _ in range(count):
            for _event in TraceReader(io.BytesIO(text)):
                pass

    return Pair(run, parse, "reading the trace", "/s", items=_EVENTS, floor_items=_EVENTS)


def snippet(scene: BenchScene) -> Pair:
    """Pages per second converted by the snippet guest, each cleared by its own memset and judged by
    the checks, beside the same events on the model guest."""
    events = list(pattern_events(parse_patterns(_RESETS)))
    testbed = build_testbed(Header(guest="snippet:6.1", host="map-gpa-range", memory=256))
    counted = ModelRun("6.1", 256)
    counted.steps(events)
    pages = counted.pages_converted

    def run(count: int) -> None:
        for _ in range(count):
            Emulation(testbed).steps(events)

    def compute(count: int) -> None:
        for _ in range(count):
            ModelRun("6.1", 256).steps(events)

    return Pair(run, compute, "the model guest", "/s", items=pages, floor_items=pages)
