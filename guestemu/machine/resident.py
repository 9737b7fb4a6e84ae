# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages of an anonymous mapping exist at all.

Guest RAM is sparse: a machine of 6 GiB may use 60 MiB. /proc/self/pagemap has eight bytes a page;
bits 63 (present) and 62 (swapped) need no privilege (Documentation/admin-guide/mm/pagemap.rst).
"""

from __future__ import annotations

import mmap
from itertools import compress
from typing import Final

_ENTRY: Final = 8
_EXISTS: Final = bytes(int(top >= 1 << 6) for top in range(256))
"""By the top byte of an entry, whether one of its bits 63 and 62 is set."""
_CHUNK: Final = 1 << 20


def resident_pages(address: int, pages: int) -> list[int]:
    """Indices of the pages at `address` (page-aligned, `pages` of 4 KiB) that were ever touched.

    Where the kernel does not tell, every page is returned.
    """
    if mmap.PAGESIZE != 4096:
        return list(range(pages))
    found: list[int] = []
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(address // mmap.PAGESIZE * _ENTRY)
            for first in range(0, pages, _CHUNK):
                count = min(_CHUNK, pages - first)
                data = pagemap.read(count * _ENTRY)
                if len(data) < count * _ENTRY:
                    return list(range(pages))
                tops = data[_ENTRY - 1 :: _ENTRY]
                found += compress(range(first, first + count), tops.translate(_EXISTS))
    except OSError:
        return list(range(pages))
    return found
