# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorded traces, counted line by line with nothing of guestemu's reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TRACES = Path(__file__).parents[1] / "data" / "dma-traces"
NAMES = ("boot", "io", "churn")


class Line(NamedTuple):
    verb: str
    device: str
    address: int
    size: int
    flags: str
    microseconds: int


def trace_path(name: str) -> Path:
    return TRACES / f"linux-6.12-q35-{name}.trace"


def dma_lines(name: str) -> list[Line]:
    """Every dma_alloc and dma_free line of a recorded trace."""
    lines = []
    for text in trace_path(name).read_text().splitlines():
        found = re.search(r"(\d+)\.(\d{6}): dma_(alloc|free): (\S+) ", text)
        if found is None:
            continue
        address = re.search(r"dma_addr=(\w+)", text)
        size = re.search(r"size=(\d+)", text)
        flags = re.search(r" flags=(\S+)", text)
        assert address is not None
        assert size is not None
        lines.append(
            Line(
                found[3],
                found[4],
                int(address[1], 16),
                int(size[1]),
                "" if flags is None else flags[1],
                int(found[1]) * 1_000_000 + int(found[2]),
            )
        )
    return lines
