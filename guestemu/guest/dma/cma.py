# SPDX-License-Identifier: GPL-2.0-or-later
"""The contiguous memory area that large coherent buffers come from where a kernel has one.

Models `dma_alloc_contiguous` (kernel/dma/contiguous.c) over `cma_alloc` (mm/cma.c): an allocation
that may sleep and has more than one page gets exactly its pages, first fit, aligned to its order
but to no more than CONFIG_CMA_ALIGNMENT (8: B12). An area that has no room, or that the device does
not reach, leaves the allocation to the page allocator. Linux 5.10 converts a power of two of pages
all the same (B5): pages of the next buffer, which its free makes private again.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import Gfn

MAX_ALIGN_ORDER: Final = 8


class CmaArea:
    """`pages` frames from `first` on."""

    def __init__(self, first: Gfn, pages: int) -> None:
        self._first = first
        self._used = bitarray(pages)
        self._used.setall(0)
        self._taken: dict[Gfn, int] = {}

    @property
    def free_pages(self) -> int:
        """Pages not handed out."""
        return self._used.count(False)

    def allocate(self, pages: int, below: int | None = None) -> Gfn | None:
        """The first frame of a run of `pages` pages whose frames lie below `below`, or None."""
        align = 1 << min((pages - 1).bit_length(), MAX_ALIGN_ORDER)
        position = -self._first % align
        while position + pages <= len(self._used):
            used = self._used.find(True, position, position + pages)
            if used < 0:
                gfn = Gfn(self._first + position)
                if below is not None and gfn + pages > below:
                    return None
                self._used[position : position + pages] = True
                self._taken[gfn] = pages
                return gfn
            position += -(-(used + 1 - position) // align) * align
        return None

    def free(self, gfn: Gfn) -> bool:
        """Gives back the run that starts at `gfn`; False when there is none."""
        pages = self._taken.pop(gfn, 0)
        start = gfn - self._first
        self._used[start : start + pages] = False
        return pages > 0
