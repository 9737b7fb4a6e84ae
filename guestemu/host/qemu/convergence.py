# SPDX-License-Identifier: GPL-2.0-or-later
"""How long passes take and whether they end: the PSP's throughput against the guest's writes.

Source: D14: 350 to 450 pages/s through SEND_UPDATE_DATA, 300 ms downtime limit, a guest that
dirties 300 to 400 pages/s and more; migration/migration.c: threshold = bandwidth x limit.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import InputError

PSP_PAGES_PER_SECOND: Final = 400
"""The middle of D14's range."""
PLAIN_BYTES_PER_SECOND: Final = 128 << 20
"""QEMU's default bandwidth limit."""
DOWNTIME_MS: Final = 300
"""QEMU's default downtime limit."""
MAX_PASSES: Final = 10_000
"""Passes after which a forecast ends."""


class Throughput(msgspec.Struct, frozen=True):
    """Encrypted pages per second through the PSP, plain bytes per second through the channel."""

    encrypted_pages: float = PSP_PAGES_PER_SECOND
    plain_bytes: float = PLAIN_BYTES_PER_SECOND

    def seconds(self, encrypted: int, plain: int) -> float:
        """The time for so many pages of each sort."""
        return encrypted / self.encrypted_pages + plain * PAGE_SIZE / self.plain_bytes


def threshold_pages(pages_per_second: float, downtime_ms: float = DOWNTIME_MS) -> int:
    """Pages that may be left when the guest stops: what the downtime limit has time for."""
    if pages_per_second <= 0 or downtime_ms < 0:
        raise InputError("threshold: give a positive rate and a downtime limit of 0 or more")
    return int(pages_per_second * downtime_ms / 1000)


class Forecast(msgspec.Struct, frozen=True):
    """Live passes until the rest fits the limit, the pages left then, the blackout to send them.
    `converges` False: the passes do not get there; the figures are those where it gave up."""

    converges: bool
    passes: int
    pages_left: int
    blackout_ms: float


def forecast(
    pages: int,
    dirty_per_second: float,
    pages_per_second: float = PSP_PAGES_PER_SECOND,
    downtime_ms: float = DOWNTIME_MS,
) -> Forecast:
    """The passes over `pages` private pages of a guest that dirties `dirty_per_second` different
    private pages (at most all of them) while the PSP moves `pages_per_second`."""
    threshold = threshold_pages(pages_per_second, downtime_ms)
    left, passes = pages, 0
    while left > threshold or not passes:
        after = min(pages, int(dirty_per_second * left / pages_per_second))
        passes += 1
        if (after >= left and left > threshold) or passes >= MAX_PASSES:
            return Forecast(False, passes, after, after / pages_per_second * 1000)
        left = after
    return Forecast(True, passes, left, left / pages_per_second * 1000)
