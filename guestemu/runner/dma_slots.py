# SPDX-License-Identifier: GPL-2.0-or-later
"""The buffers that a program's dma_alloc and dma_free operations name by slot, and those of
dma_alloc_pages and dma_free_pages, which have slots of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import Gpa
from guestemu.guest.base import CallOutcome, Guest
from guestemu.program.ops import Op

_NOTHING: Final = CallOutcome(0)


class DmaSlots:
    """Which slot holds which buffer."""

    __slots__ = ("_buffers", "_pages")

    def __init__(self) -> None:
        self._buffers: dict[int, Gpa] = {}
        self._pages: dict[int, Gpa] = {}

    def clear(self) -> None:
        """All slots are empty."""
        self._buffers = {}
        self._pages = {}

    def alloc(self, guest: Guest, op: Op) -> CallOutcome:
        """Into a slot; one that is in use keeps its buffer."""
        return _alloc(self._buffers, guest.dma_alloc_coherent, op)

    def free(self, guest: Guest, op: Op) -> CallOutcome:
        """What the slot holds, if it holds something."""
        return _free(self._buffers, guest.dma_free_coherent, op)

    def alloc_pages(self, guest: Guest, op: Op) -> CallOutcome:
        """As `alloc`, by dma_alloc_pages()."""
        return _alloc(self._pages, guest.dma_alloc_pages, op)

    def free_pages(self, guest: Guest, op: Op) -> CallOutcome:
        """As `free`, by dma_free_pages()."""
        return _free(self._pages, guest.dma_free_pages, op)


def _alloc(
    slots: dict[int, Gpa], allocate: Callable[[int, bool], CallOutcome], op: Op
) -> CallOutcome:
    slot, size, atomic = op.arguments
    if slot in slots:
        return _NOTHING
    outcome = allocate(size, not atomic)
    if outcome.value is not None and outcome.value > 0:
        slots[slot] = Gpa(outcome.value)
    return outcome


def _free(slots: dict[int, Gpa], release: Callable[[Gpa], CallOutcome], op: Op) -> CallOutcome:
    gpa = slots.pop(op.arguments[0], None)
    return _NOTHING if gpa is None else release(gpa)
