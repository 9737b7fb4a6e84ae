# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program must keep to so that both codecs hold it and every guest can place it.

The text reader refuses what breaks a rule, the binary reader folds it into range, the shrinker
skips it. The tools that only pass programs on need not look.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.x86 import Mode
from guestemu.program.layout import parts_of
from guestemu.program.ops import ARGUMENT_MASKS, REGIONS, SPECS, Op, OpKind, Region
from guestemu.program.program import Header

MAX_VCPUS: Final = 64
MAX_MEMORY: Final = 1 << 20
"""MiB: 1 TiB."""
MAX_BUDGET: Final = 1_000_000_000
MIN_CBIT: Final = 32
MAX_CBIT: Final = 51
GIANT_MEMORY: Final = 4096
"""MiB of guest memory from which region G exists."""


def regions_of(memory: int) -> tuple[Region, ...]:
    """The regions a guest with `memory` MiB offers; G only from 4096 MiB on."""
    return tuple(r for r in Region if r is not Region.G or memory >= GIANT_MEMORY)


def takes_page(op: Op) -> bool:
    """Whether `op` has a page operand: its kind says so, a HYPERCALL op decides itself."""
    return op.has_page if op.kind is OpKind.HYPERCALL else SPECS[op.kind].has_page


def problem_of(op: Op, header: Header) -> str | None:
    """What is wrong with `op` under `header` as one phrase with the remedy, or None."""
    if not 0 <= op.vcpu < header.vcpus:
        return f"vcpu {op.vcpu} of {header.vcpus}; name a vCPU below the header's vcpus"
    if not 0 <= op.cpl <= 3:
        return f"cpl {op.cpl}; use 0 to 3"
    if op.mode is Mode.REAL16 and op.cpl:
        return f"cpl {op.cpl} in real16; real mode has only cpl=0"
    if takes_page(op):
        if op.region not in regions_of(header.memory):
            return f"region {op.region.name} needs memory of at least {GIANT_MEMORY} MiB"
        pages = REGIONS[op.region].pages
        if not 0 <= op.page < pages:
            return f"page {op.page} of region {op.region.name}; use 0 to {pages - 1}"
    for argument, value in zip(SPECS[op.kind].arguments, op.arguments, strict=False):
        mask = ARGUMENT_MASKS[argument.sort]
        if not 0 <= value <= mask:
            return f"{argument.name}={value:#x} is out of range; use 0 to {mask:#x}"
    return None


def header_problem(header: Header) -> tuple[str, str] | None:
    """The first field of `header` out of range and what to do, or None."""
    bounds: tuple[tuple[str, int, int, int], ...] = (
        ("cbit", header.cbit, MIN_CBIT, MAX_CBIT),
        ("memory", header.memory, 1, MAX_MEMORY),
        ("vcpus", header.vcpus, 1, MAX_VCPUS),
        ("seed", header.seed, 0, (1 << 64) - 1),
        ("budget", header.budget, 1, MAX_BUDGET),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            return name, f"{name} {value} is out of range; use {low} to {high}"
    if header.memory << 20 > 1 << header.cbit:
        return "memory", f"memory {header.memory} MiB reaches the C-bit; raise cbit or take less"
    try:
        parts_of(header.layout, header.memory)
    except ValueError as error:
        return "layout", str(error)
    return None
