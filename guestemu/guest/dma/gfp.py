# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocation flags as the kernel prints them, and what they say about blocking and zones.

The trace events print gfp flags with `show_gfp_flags` (include/trace/events/mmflags.h, Linux 6.12):
names joined by `|`, `none` for zero, left-over bits in hexadecimal.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

DIRECT_RECLAIM_BIT: Final = 0x400
"""___GFP_DIRECT_RECLAIM in include/linux/gfp_types.h (Linux 5.1 to 6.12)."""

GFP_KERNEL: Final = frozenset({"GFP_KERNEL"})
GFP_ATOMIC: Final = frozenset({"GFP_ATOMIC"})
GFP_NOIO: Final = frozenset({"GFP_NOIO"})
GFP_NOWAIT: Final = frozenset({"GFP_NOWAIT"})

_BLOCKING: Final = frozenset(
    {
        "GFP_KERNEL",
        "GFP_KERNEL_ACCOUNT",
        "GFP_NOIO",
        "GFP_NOFS",
        "GFP_USER",
        "GFP_HIGHUSER",
        "GFP_HIGHUSER_MOVABLE",
        "GFP_TRANSHUGE",
        "__GFP_RECLAIM",
        "__GFP_DIRECT_RECLAIM",
    }
)


@lru_cache(maxsize=1024)
def parse_gfp(text: str) -> frozenset[str]:
    """The names in a printed flags field; `none` and the empty text give the empty set."""
    return frozenset(name for name in text.split("|") if name and name != "none")


@lru_cache(maxsize=1024)
def may_block(gfp: frozenset[str]) -> bool:
    """Whether an allocation with these flags may sleep: they allow direct reclaim.

    Models `gfpflags_allow_blocking` (include/linux/gfp.h). A coherent allocation of a SEV guest
    that may not block comes from the atomic pool and converts nothing (B2). GFP_NOIO and GFP_NOFS
    block.
    """
    if not _BLOCKING.isdisjoint(gfp):
        return True
    return any(_hex_bits(name) & DIRECT_RECLAIM_BIT for name in gfp)


def _hex_bits(name: str) -> int:
    if not name.startswith("0x") or len(name) > 18:
        return 0
    try:
        return int(name, 16)
    except ValueError:
        return 0
