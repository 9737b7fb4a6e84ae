# SPDX-License-Identifier: GPL-2.0-or-later
"""The number of a feature: what was seen, as a tuple of small integers, hashed to 64 bits.

The same everywhere: `fastpath/feedback.c` has it in C, and no release of Python changes it. A pool
of counters takes the low bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from guestemu.abi.addresses import U64_MASK

_START: Final = 0x9E37_79B9_7F4A_7C15
_FACTOR: Final = 0xD6E8_FEB8_6659_FD93
_SHIFT: Final = 32
_KEPT: Final = 1 << 15
"""Features whose hash is remembered; a campaign meets a few thousand."""


@lru_cache(_KEPT)
def feature(*items: int) -> int:
    """The hash of `items`, each taken modulo 2**64; their number counts, and their order."""
    state = _START ^ len(items)
    for item in items:
        state = (state ^ item & U64_MASK) * _FACTOR & U64_MASK
        state ^= state >> _SHIFT
    return state
