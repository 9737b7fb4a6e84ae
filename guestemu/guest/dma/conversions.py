# SPDX-License-Identifier: GPL-2.0-or-later
"""What the DMA side needs of a guest: two conversions and a memset."""

from __future__ import annotations

from typing import Protocol

from guestemu.abi.addresses import Gfn


class CoherentGuest(Protocol):
    """A guest that can convert direct-mapped pages. Implemented by the emulated guest.

    The DMA side decides which pages and in what order; the guest does it, and the watcher of the
    machine counts hypercalls, shared pages and violations.
    """

    def set_memory_decrypted(self, gfn: Gfn, pages: int, /) -> int:
        """The kernel's set_memory_decrypted: 0, or a negative errno."""

    def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
        """The kernel's set_memory_encrypted: 0, or a negative errno."""

    def memset(self, gfn: Gfn, size: int, /) -> None:
        """Zeroes `size` bytes from the start of frame `gfn` through its current mapping."""
