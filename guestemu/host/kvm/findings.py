# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest did to its host through a defect of the ABI, recorded instead of suffered.

The models never allocate what a guest makes the modelled kernel allocate, and never touch memory
that the modelled kernel would corrupt; they note it here and go on.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol, runtime_checkable

import msgspec

HOST_MEMORY_BOUND: Final = 16 << 20
"""Bytes of kernel memory that a guest may make its host allocate without a finding: one bit for
each page of 512 GiB of addresses. (OVMF reports ranges up to 64 GiB, 2 MiB of bitmap: A52.)"""

HOST_MEMORY: Final = 64 << 30
"""Bytes of the modelled host's RAM: vmalloc of more fails with -ENOMEM."""

KMALLOC_MAX: Final = 4 << 20
"""Bytes that one kmalloc gives at most (KMALLOC_MAX_SIZE on x86-64)."""


class FindingKind(enum.Enum):
    """The sort of harm."""

    HOST_MEMORY = "host memory"
    OUT_OF_BOUNDS = "out of bounds"
    USE_AFTER_FREE = "use after free"


class ResourceFinding(msgspec.Struct, frozen=True, gc=False):
    """One harm: `amount` is in bytes (0 where there is no amount), `source` cites the defect."""

    kind: FindingKind
    amount: int
    message: str
    source: str


@runtime_checkable
class ReportsFindings(Protocol):
    """A host that keeps findings; the list starts over at `Host.reset`."""

    @property
    def findings(self) -> tuple[ResourceFinding, ...]:
        """What happened since the last reset, in order."""


class FindingLog:
    """Collects findings; of equal kind and source only the first and each larger amount.

    So a guest that repeats a harmful call does not make the log grow without bound.
    """

    __slots__ = ("_found", "_largest")

    def __init__(self) -> None:
        self._found: list[ResourceFinding] = []
        self._largest: dict[tuple[FindingKind, str], int] = {}

    def add(self, kind: FindingKind, amount: int, message: str, source: str) -> None:
        """Records a finding unless one as large is there already."""
        key = (kind, source)
        if key in self._largest and amount <= self._largest[key]:
            return
        self._largest[key] = amount
        self._found.append(ResourceFinding(kind, amount, message, source))

    @property
    def found(self) -> tuple[ResourceFinding, ...]:
        """All of them, in order."""
        return tuple(self._found)
