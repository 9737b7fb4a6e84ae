# SPDX-License-Identifier: GPL-2.0-or-later
"""An observer that keeps what it hears."""

from __future__ import annotations

from guestemu.dma.cost import Conversion
from guestemu.dma.events import Event


class Log:
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def begin(self, event: Event, /) -> None:
        self.heard.append(("begin", event.line))

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        self.heard.append((conversion, is_pool))

    def cleared(self, gfn: int, size: int, /) -> None:
        self.heard.append(("cleared", gfn, size))

    @property
    def conversions(self) -> list[Conversion]:
        return [item[0] for item in self.heard if isinstance(item[0], Conversion)]
