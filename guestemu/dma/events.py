# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of a DMA trace: an allocation, a free, a mark between phases.

They model the trace events `dma_alloc`, `dma_alloc_pages`, `dma_free`, `dma_free_pages`
(include/trace/events/dma.h, Linux 6.12) and `tracing_mark_write`. A recorded trace and a built-in
pattern give the same records, so everything behind them does not care which it was.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from guestemu.abi.addresses import pfn_up
from guestemu.guest.dma.coherent import Origin
from guestemu.guest.dma.gfp import may_block


class Alloc(msgspec.Struct, frozen=True, gc=False):
    """One `dma_alloc` or `dma_alloc_pages` event.

    `line` counts from 1, `time_ns` is the trace clock in nanoseconds, `dma_addr` the bus address
    and `size` the bytes the driver asked for, before any rounding. `driver` is empty when the trace
    does not name one. `via_pages`: dma_alloc_pages (B4), otherwise dma_alloc_attrs. `has_failed`:
    the kernel also traces failed allocations, with a NULL virtual address. `origin` is another
    than DMA in built-in patterns only.
    """

    line: int
    time_ns: int
    cpu: int
    task: str
    device: str
    driver: str
    dma_addr: int
    size: int
    gfp: frozenset[str]
    attrs: frozenset[str] = frozenset()
    via_pages: bool = False
    has_failed: bool = False
    origin: Origin = Origin.DMA

    @property
    def pages(self) -> int:
        """4 KiB pages the allocation covers (PFN_UP of its size)."""
        return pfn_up(self.size)

    @property
    def is_blocking(self) -> bool:
        """May sleep; if not, a SEV guest takes it from the atomic pool (B2)."""
        return may_block(self.gfp)


class Free(msgspec.Struct, frozen=True, gc=False):
    """One `dma_free` or `dma_free_pages` event; fields as in `Alloc`.

    `is_null`: the driver freed NULL, which the kernel traces and then ignores.
    """

    line: int
    time_ns: int
    cpu: int
    task: str
    device: str
    driver: str
    dma_addr: int
    size: int
    attrs: frozenset[str] = frozenset()
    via_pages: bool = False
    is_null: bool = False


class Mark(msgspec.Struct, frozen=True, gc=False):
    """One `tracing_mark_write: MARK name` event: the phase `name` begins."""

    line: int
    time_ns: int
    cpu: int
    task: str
    name: str


Event: TypeAlias = Alloc | Free | Mark
