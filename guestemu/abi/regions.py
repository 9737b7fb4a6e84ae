# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs name: memory regions by shape, and the two hypercall instructions.

A region names its size, alignment and initial leaf size; each guest places it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, PUD_SIZE


class Instruction(enum.IntEnum):
    """The instruction a hypercall op executes."""

    __hash__ = int.__hash__  # enum's own is Python code, ten times as slow

    VMMCALL = 0
    VMCALL = 1


class Region(enum.IntEnum):
    """The memory regions every guest offers; see `REGIONS` for size and initial mapping."""

    __hash__ = int.__hash__  # enum's own is Python code, ten times as slow

    D = 0
    L = 1
    V = 2
    G = 3


class RegionSpec(msgspec.Struct, frozen=True):
    """Shape of a region: `pages` of 4 KiB, mapped by leaves of `leaf` bytes, aligned to `leaf`.

    `alias` is the region whose frames this one maps a second time (a vmalloc-like alias), or None.
    """

    pages: int
    leaf: int
    alias: Region | None
    text: str


REGIONS: Final[Mapping[Region, RegionSpec]] = {
    Region.D: RegionSpec(1024, PAGE_SIZE, None, "direct map, 4 KiB leaves"),
    Region.L: RegionSpec(2048, PMD_SIZE, None, "direct map, 2 MiB leaves"),
    Region.V: RegionSpec(64, PAGE_SIZE, Region.D, "vmalloc-like alias of D's first 64 frames"),
    Region.G: RegionSpec(2 << 18, PUD_SIZE, None, "direct map, 1 GiB leaves (memory >= 4G only)"),
}
