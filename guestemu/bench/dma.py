# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of DMA traces: the model guest."""

from __future__ import annotations

import io
from typing import Final

from guestemu.bench.figure import Pair
from guestemu.bench.scene import Scene
from guestemu.dma.model import ModelRun
from guestemu.dma.synthetic import synthetic_events, trace_text
from guestemu.dma.trace import TraceReader

_EVENTS: Final = 4000
_MEMORY: Final = 1024


def model(scene: Scene) -> Pair:
    """Events per second from an ftrace text through the model guest and the analysis, beside
    reading the text."""
    text = b"".join(trace_text(synthetic_events(_EVENTS)))

    def run(count: int) -> None:
        for _ in range(count):
            guest = ModelRun("6.1", _MEMORY)
            for event in TraceReader(io.BytesIO(text)):
                guest.step(event)

    def parse(count: int) -> None:
        for _ in range(count):
            for _event in TraceReader(io.BytesIO(text)):
                pass

    return Pair(run, parse, "reading the trace", "/s", items=_EVENTS, floor_items=_EVENTS)
