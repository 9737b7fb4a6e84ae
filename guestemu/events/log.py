# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of one machine that no exit handler sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from guestemu.events.base import Event

KEPT: Final = 4096
"""A guest that runs for hours keeps its last events only."""


class EventLog(deque[Event]):
    """The last `KEPT` events; `listener` hears of each one when it happens, and `counter` after it
    that there was one."""

    def __init__(self) -> None:
        super().__init__(maxlen=KEPT)
        self.listener: Callable[[Event], None] | None = None
        self.counter: Callable[[], None] | None = None
        self._keep = super().append

    def append(self, event: Event) -> None:
        """One thing happened."""
        self._keep(event)
        if self.listener is not None:
            self.listener(event)
        if self.counter is not None:
            self.counter()
