# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C, SIGTERM and SIGHUP between units of work, so that what was done stays whole and can be
reported."""

from __future__ import annotations

from types import FrameType

from guestemu.processes import EndSignals, interrupt


class Interrupts(EndSignals):
    """While entered, a signal during a held unit of work waits for its end; a second one does not.

    Outside of `hold` … `release` (while input is awaited, say) it interrupts at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_held = False
        self._is_pending = False

    def hold(self) -> None:
        """A unit of work begins."""
        self._is_held = True

    def release(self) -> None:
        """It has ended. Raises KeyboardInterrupt if a signal came in the meantime."""
        self._is_held = False
        if self._is_pending:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal during a unit of work; interrupts otherwise."""
        if not self._is_held or self._is_pending:
            interrupt(number, frame)
        self._is_pending = True
