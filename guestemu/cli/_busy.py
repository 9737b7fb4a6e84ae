# SPDX-License-Identifier: GPL-2.0-or-later
"""A line on the terminal that says what runs and for how long, where nothing else does."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Final, Self

DELAY_S: Final = 2.0
_EVERY_S: Final = 0.5
_CLEAR: Final = "\r\x1b[K"


class Busy:
    """While entered, and until `stop`: from two seconds on a line with the seconds gone, on stderr.

    Any output of the command stops it: `console` sees to that.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._is_shown = False
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the line away, for good."""
        if self._over.is_set():
            return
        with self._lock:
            self._over.set()
            if self._is_shown:
                self._write("")

    def _tick(self) -> None:
        pause = DELAY_S
        while not self._over.wait(pause):
            pause = _EVERY_S
            with self._lock:
                if not self._over.is_set():
                    self._is_shown = True
                    self._write(f"{self._text}: {time.monotonic() - self._start:.0f} s")

    def _write(self, text: str) -> None:
        sys.stderr.write(_CLEAR + text)
        sys.stderr.flush()
