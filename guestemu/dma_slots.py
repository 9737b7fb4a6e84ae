# SPDX-License-Identifier: GPL-2.0-or-later
"""The buffers that a program's dma_alloc and dma_free operations name by slot."""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import Gpa
from guestemu.guest.base import CallOutcome, Guest
from guestemu.program.ops import Op

_NOTHING: Final = CallOutcome(0)


class DmaSlots:
    """Which slot holds which buffer."""

    __slots__ = ("_buffers",)

    def __init__(self) -> None:
        self._buffers: dict[int, Gpa] = {}

    def clear(self) -> None:
        """All slots are empty."""
        self._buffers = {}

    def alloc(self, guest: Guest, op: Op) -> CallOutcome:
        """Into a slot; one that is in use keeps its buffer."""
        slot, size, atomic = op.arguments
        if slot in self._buffers:
            return _NOTHING
        outcome = guest.dma_alloc_coherent(size, not atomic)
        if outcome.value is not None and outcome.value > 0:
            self._buffers[slot] = Gpa(outcome.value)
        return outcome

    def free(self, guest: Guest, op: Op) -> CallOutcome:
        """What the slot holds, if it holds something."""
        gpa = self._buffers.pop(op.arguments[0], None)
        return _NOTHING if gpa is None else guest.dma_free_coherent(gpa)
