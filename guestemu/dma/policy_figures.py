# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures by which policies are compared."""

from __future__ import annotations

import msgspec


class PolicyFigures(msgspec.Struct, frozen=True):
    """One policy on a trace, without the atomic pools.

    `*_saved` are against the kernel's own way (negative: more). `peak_shared_pages` and
    `mean_shared_pages` (over time) are with the pools; `extra_shared_pages` is the mean above the
    kernel's: memory that lies open to the host for nothing.
    """

    conversions: int
    hypercalls: int
    pages_converted: int
    splits: int
    peak_shared_pages: int
    mean_shared_pages: float
    no_memory: int
    conversions_saved: int
    hypercalls_saved: int
    extra_shared_pages: float
