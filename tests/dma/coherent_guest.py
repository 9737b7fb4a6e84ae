# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that remembers which frames are shared and refuses conversions on demand."""

from __future__ import annotations

from guestemu.abi.addresses import Gfn


class RecordingGuest:
    """Keeps every call in `log`; each call named in `failing` returns -12 and changes nothing."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.shared: set[int] = set()
        self.failing: set[str] = set()

    def set_memory_decrypted(self, gfn: Gfn, pages: int, /) -> int:
        return self._convert("decrypt", gfn, pages)

    def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
        return self._convert("encrypt", gfn, pages)

    def memset(self, gfn: Gfn, size: int, /) -> None:
        last = gfn + (size - 1) // 4096
        assert self.shared.issuperset(range(gfn, last + 1)), "cleared before it was shared"
        self.log.append(("memset", gfn, size))

    def _convert(self, what: str, gfn: int, pages: int) -> int:
        self.log.append((what, gfn, pages))
        if what in self.failing:
            return -12
        frames = set(range(gfn, gfn + pages))
        if what == "decrypt":
            self.shared |= frames
        else:
            assert frames <= self.shared, "encrypted what was not shared"
            self.shared -= frames
        return 0
