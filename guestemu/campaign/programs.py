# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that a session has run, as far as a bounded memory goes.

More than half of the inputs that mutation makes are, once decoded, programs that already ran: their
bytes differ in what the decoder or the host ignores, or the mutation took back an earlier one.
Running those again shows nothing. The set forgets the oldest programs first, which then run again.
"""

from __future__ import annotations

from typing import Final

from guestemu.program.ops import Op

KEPT: Final = 1 << 17
"""Programs in each of the two generations of the set."""

IN_A_ROW: Final = 32
"""After so many known programs one runs although it is known, so that a campaign whose space is
nearly used up still ends by its number of executions."""


class ProgramSet:
    """Programs by the hash of their ops."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._young: set[int] = set()
        self._old: set[int] = set()

    def add(self, ops: tuple[Op, ...]) -> bool:
        """Adds a program; whether it is new."""
        key = hash(ops)
        if key in self._young:
            return False
        is_new = key not in self._old
        if len(self._young) >= self._kept:
            self._old = self._young
            self._young = set()
        self._young.add(key)
        return is_new
