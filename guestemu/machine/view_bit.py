# SPDX-License-Identifier: GPL-2.0-or-later
"""The address bit that selects a page's private or shared view.

A SEV guest *sets* the C-bit of a private address, a TD sets the shared bit of a shared one. This is
the only module that knows which; everything else asks for a view by its meaning.
"""

from __future__ import annotations

from typing import Final

import msgspec


class ViewBit(msgspec.Struct, frozen=True):
    """The bit as a mask (0: a machine with one view), and its value in a private address.

    It stands at the same place in page-table entries, in CR3 and in physical addresses.
    """

    mask: int
    private: int

    @property
    def shared(self) -> int:
        """Its value in a shared address."""
        return self.mask ^ self.private

    def is_private(self, address: int) -> bool:
        """Whether an address or entry selects the private view (False without a bit)."""
        return bool(self.mask) and address & self.mask == self.private

    def select(self, address: int, private: bool) -> int:
        """The address or entry with the bit of one view."""
        return address & ~self.mask | (self.private if private else self.shared)


NO_VIEW_BIT: Final = ViewBit(0, 0)
"""Of a machine without memory encryption."""


def sev_bit(position: int) -> ViewBit:
    """The C-bit of a SEV guest at bit `position`: set = private."""
    return ViewBit(1 << position, 1 << position)


def tdx_bit(position: int) -> ViewBit:
    """The shared bit of a TD at bit `position`: set = shared (T9)."""
    return ViewBit(1 << position, 0)
