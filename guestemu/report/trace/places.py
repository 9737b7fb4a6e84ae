# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages by the names that programs use: D[3] instead of frame 0x403.

Traces name pages this way so that the logs of two guests that place regions differently compare.
"""

from __future__ import annotations

from collections.abc import Mapping

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT
from guestemu.abi.regions import REGIONS, Region
from guestemu.events.base import Event
from guestemu.guest.base import PlacedRegion


class Places:
    """Names of the frames of a guest whose regions are `regions`."""

    def __init__(self, regions: Mapping[Region, PlacedRegion]) -> None:
        self._regions = dict(regions)

    @property
    def borders(self) -> frozenset[int]:
        """The first frame of each region, and the first one behind it."""
        found = [(placed.gpa >> PAGE_SHIFT, placed.pages) for placed in self._regions.values()]
        return frozenset(end for first, pages in found for end in (first, first + pages))

    def virtual(self, gva: int) -> str | None:
        """The page of a virtual address as "D[3]"; None outside every region."""
        for region, placed in self._regions.items():
            first = gva - placed.gva >> PAGE_SHIFT
            if 0 <= first < placed.pages:
                return _range(region, first, 1)
        return None

    def frame(self, gfn: int, pages: int = 1) -> str:
        """`pages` frames from `gfn` on: "D[3]", "D[3..4]", or "frame 0x10" outside every region."""
        for region, placed in self._regions.items():
            first = gfn - (placed.gpa >> PAGE_SHIFT)
            if REGIONS[region].alias is None and 0 <= first < placed.pages:
                return _range(region, first, pages)
        last = f"..{gfn + pages - 1:#x}" if pages > 1 else ""
        return f"frame{'s' if last else ''} {gfn:#x}{last}"

    def page(self, gva: int, gfn: int, pages: int, is_alias: bool) -> str:
        """Virtual pages from `gva` on, which map `gfn`: by their own region if an alias."""
        if is_alias:
            for region, placed in self._regions.items():
                first = gva - placed.gva >> PAGE_SHIFT
                if REGIONS[region].alias is not None and 0 <= first < placed.pages:
                    return _range(region, first, pages)
        return self.frame(gfn, pages)

    def event(self, event: Event) -> str:
        """Where an event happened that has `gfn`, perhaps with `pages`, `gva` and `is_alias`."""
        gva, gfn = getattr(event, "gva", 0), getattr(event, "gfn", 0)
        return self.page(gva, gfn, getattr(event, "pages", 1), getattr(event, "is_alias", False))

    def address(self, gpa: int) -> str | None:
        """A GPA as "D[3]" or "D[3]+0x10"; None outside every region."""
        name = self.frame(gpa >> PAGE_SHIFT)
        if name.startswith("frame"):
            return None
        offset = gpa & PAGE_MASK
        return f"{name}+{offset:#x}" if offset else name


def _range(region: Region, first: int, pages: int) -> str:
    last = f"..{first + pages - 1}" if pages > 1 else ""
    return f"{region.name}[{first}{last}]"
