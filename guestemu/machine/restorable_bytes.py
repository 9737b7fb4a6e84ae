# SPDX-License-Identifier: GPL-2.0-or-later
"""A byte for each page, with a checkpoint whose rollback costs what was changed since.

A guest of 8 GiB has two million page states; a campaign puts a few of them back, ten thousand times
a second.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

_LIMIT: Final = 256
"""Changes after which a rollback copies everything: a guest that runs for hours makes millions."""


class RestorableBytes:
    """`data` is changed in place by its owner, who calls `note` for each change. Its address stays.

    `base` of the checkpoint is `data` at first.
    """

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.base = bytes(data)
        self._changed: dict[tuple[int, int], None] = {}

    def note(self, first: int, count: int) -> None:
        """`count` bytes from `first` on were changed, or are about to be."""
        changed = self._changed
        changed[first, count] = None
        if len(changed) > _LIMIT:
            changed.clear()
            changed[0, len(self.data)] = None

    def checkpoint(self, base: bytes | None = None) -> None:
        """Keeps `data`, or `base` in its place."""
        self.base = bytes(self.data) if base is None else base
        self._changed.clear()

    def rollback(self) -> Collection[tuple[int, int]]:
        """Puts back what was noted; returns it, as (first, count)."""
        changed = self._changed
        if not changed:
            return ()
        data, base = self.data, self.base
        for first, count in changed:
            if count == 1:
                data[first] = base[first]
            else:
                data[first : first + count] = base[first : first + count]
        self._changed = {}
        return changed
