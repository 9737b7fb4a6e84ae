# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run reports to its observers: the analysis and the writers of files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from guestemu.dma.cost import Conversion
from guestemu.dma.events import Event


class Observer(Protocol):
    """Told of everything in the order it happens."""

    def begin(self, event: Event, /) -> None:
        """The replay of `event` begins; what follows belongs to it."""

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """The guest converted pages: of a buffer, or for an atomic pool (`is_pool`)."""

    def cleared(self, gfn: int, size: int, /) -> None:
        """The guest zeroed `size` bytes of a shared buffer from the start of frame `gfn` on."""


class Observers:
    """Tells several; the first hears it first."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers

    def begin(self, event: Event, /) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.begin(event)

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.converted(conversion, is_pool)

    def cleared(self, gfn: int, size: int, /) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.cleared(gfn, size)


class Output:
    """An observer that writes `path`. Where that fails (a full disk), the replay goes on without
    it, and `failure` says why."""

    def __init__(self, path: Path, observer: Observer | None = None) -> None:
        self.failure: OSError | None = None
        self._path = path
        self._observer = observer

    def begin(self, event: Event, /) -> None:
        """See `Observer`."""
        if self._observer is not None and self.failure is None:
            self.attempt(partial(self._observer.begin, event))

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        if self._observer is not None and self.failure is None:
            self.attempt(partial(self._observer.converted, conversion, is_pool))

    def cleared(self, gfn: int, size: int, /) -> None:
        """See `Observer`."""
        if self._observer is not None and self.failure is None:
            self.attempt(partial(self._observer.cleared, gfn, size))

    def attempt(self, write: Callable[[], object]) -> None:
        """Writes some of it; notes the first failure."""
        try:
            write()
        except OSError as error:
            text = error.strerror or str(error)
            self.failure = self.failure or OSError(error.errno, text, str(self._path))
