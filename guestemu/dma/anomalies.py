# SPDX-License-Identifier: GPL-2.0-or-later
"""What is odd in a trace or in its replay: counted by kind, the first of each kind listed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

KEPT_PER_KIND: Final = 20


class AnomalyKind(enum.Enum):
    """The kinds of anomaly."""

    UNKNOWN_FREE = "unknown free"
    SIZE_MISMATCH = "free with another size"
    DEVICE_MISMATCH = "free by another device"
    OVERLAP = "overlapping allocation"
    OUT_OF_ORDER = "timestamp out of order"
    ABSURD_SIZE = "absurd size"
    NO_MEMORY = "no memory in the guest"
    CONVERSION_FAILED = "conversion failed"
    POOL_GROWTH_FAILED = "atomic pool did not grow"


class Anomaly(msgspec.Struct, frozen=True):
    """One anomaly: its kind, the trace line it was noticed at, and one sentence."""

    kind: AnomalyKind
    line: int
    message: str


class AnomalyLog:
    """Counts anomalies and keeps the first 20 of each kind in the order they came."""

    def __init__(self) -> None:
        self._counts: dict[AnomalyKind, int] = {}
        self._kept: list[Anomaly] = []

    def add(self, kind: AnomalyKind, line: int, message: str) -> None:
        """Counts one; keeps it if it is among the first of its kind."""
        count = self._counts.get(kind, 0)
        self._counts[kind] = count + 1
        if count < KEPT_PER_KIND:
            self._kept.append(Anomaly(kind, line, message))

    @property
    def counts(self) -> Mapping[AnomalyKind, int]:
        """How many of each kind that occurred."""
        return self._counts

    @property
    def kept(self) -> tuple[Anomaly, ...]:
        """The listed ones."""
        return tuple(self._kept)
