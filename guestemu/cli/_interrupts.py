# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C, SIGTERM and SIGHUP between units of work, so that what was done stays whole and can be
reported."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from guestemu.processes import END_SIGNALS, interrupt


class Interrupts:
    """While entered, a signal during a held unit of work waits for its end; a second one does not.

    Outside of `hold` … `release` (while input is awaited, say) it interrupts at once. Works in the
    main thread only.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._is_pending = False

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in END_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """A unit of work begins."""
        self._is_held = True

    def release(self) -> None:
        """It has ended. Raises KeyboardInterrupt if a signal came in the meantime."""
        self._is_held = False
        if self._is_pending:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_held or self._is_pending:
            interrupt(number, frame)
        self._is_pending = True
