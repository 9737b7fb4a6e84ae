# SPDX-License-Identifier: GPL-2.0-or-later
"""How the caches of a machine treat the two aliases of a physical line (fact E32)."""

from __future__ import annotations

import enum


class CacheModel(enum.Enum):
    """What a CPU without SME_COHERENT (CPUID 0x8000001F EAX bit 10 clear) may do with its caches.

    `NONE`: no caches. `INCOHERENT`: lines are tagged with the C-bit, both aliases of a line can be
    cached, and a line stays until it is flushed or an operation evicts it. `EVICTING`: besides,
    lines are evicted at random, as the seed decides.
    """

    NONE = "none"
    INCOHERENT = "incoherent"
    EVICTING = "evicting"
