# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages by the names that programs use: D[3] instead of GPA 0x403000.

Traces name pages this way so that the logs of two guests that place regions differently compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, gpa_text
from guestemu.abi.regions import REGIONS, Region
from guestemu.events.base import Event
from guestemu.guest.base import PlacedRegion

_ADDRESS: Final = re.compile(r"\bGPA (0x[0-9a-f]+)\b|\b0x[0-9a-f]{16}\b")


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
        """`pages` frames from `gfn` on: "D[3]", "D[3..4]"; outside every region "GPA 0x10000", or
        "GPA 0x10000..0x11fff"."""
        last = f"..{(gfn + pages << PAGE_SHIFT) - 1:#x}" if pages > 1 else ""
        return self._in_region(gfn, pages) or f"{gpa_text(gfn)}{last}"

    def _in_region(self, gfn: int, pages: int = 1) -> str | None:
        for region, placed in self._regions.items():
            first = gfn - (placed.gpa >> PAGE_SHIFT)
            if REGIONS[region].alias is None and 0 <= first < placed.pages:
                return _range(region, first, pages)
        return None

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

    def traced(self, event: Event) -> str:
        """The same in a trace file, where a page outside every region is "frame 0x10": hashes of
        traces depend on it."""
        gfn, pages = getattr(event, "gfn", 0), getattr(event, "pages", 1)
        last = f"..{gfn + pages - 1:#x}" if pages > 1 else ""
        words = self.event(event)
        outside = f"frame{'s' if last else ''} {gfn:#x}{last}"
        return outside if words.startswith("GPA ") else words

    def address(self, gpa: int) -> str | None:
        """A GPA as "D[3]" or "D[3]+0x10"; None outside every region."""
        name = self._in_region(gpa >> PAGE_SHIFT)
        offset = gpa & PAGE_MASK
        return f"{name}+{offset:#x}" if name and offset else name

    def annotate(self, text: str) -> str:
        """`text`, with the page's name behind each GPA and virtual address in a region."""

        def named(found: re.Match[str]) -> str:
            gpa = found[1]
            name = self.virtual(int(found[0], 16)) if gpa is None else self.address(int(gpa, 16))
            return f"{found[0]} ({name})" if name else found[0]

        return _ADDRESS.sub(named, text)


def _range(region: Region, first: int, pages: int) -> str:
    last = f"..{first + pages - 1}" if pages > 1 else ""
    return f"{region.name}[{first}{last}]"
