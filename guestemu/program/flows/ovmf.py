# SPDX-License-Identifier: GPL-2.0-or-later
"""OVMF as a caller: the storm of page-status hypercalls of a firmware boot.

Kalra counted 19573 hypercalls at a boot, 19479 of them page-status, about 18000 by OVMF (A52). OVMF
reports MMIO, flash and ACPI areas, and memory that does not exist, for instance 6 GiB to 64 GiB of
a 4 GiB guest. Which ranges it names how often was not recorded: the shares here are this module's.

The first version of OVMF's stub used number 11 (A49), which is SCHED_YIELD everywhere but on the
2019 patch sets: the host answers 0 and records nothing (M61). That it also destroyed RBX, a
register its caller keeps, is in `guestemu.guest.ovmf`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.program.ops import Op, OpKind

GIB: Final = 1 << 30
BOOT_NOTIFICATIONS: Final = 18_000
"""Page-status hypercalls of an OVMF boot, about (A52)."""

_FLASH: Final = (0xFFC0_0000, 1024)
_MMIO: Final = ((0xFEC0_0000, 1), (0xFED0_0000, 1), (0xFEE0_0000, 1), (0x8000_0000, 65536))


class StormPlan(msgspec.Struct, frozen=True):
    """A storm of `notifications` hypercalls for a guest with `memory` bytes of RAM.

    `number` is the hypercall's; `top` the end of the address space that OVMF maps, in bytes;
    `acpi` the first GPA of a 64 KiB ACPI area inside RAM, `acpi_pages` of which are reported.
    """

    notifications: int = BOOT_NOTIFICATIONS
    number: int = KVM_HC_MAP_GPA_RANGE
    memory: int = 64 << 20
    top: int = 64 * GIB
    acpi: int = 0x3F0_0000
    acpi_pages: int = 16


def boot_storm(plan: StormPlan) -> tuple[Op, ...]:
    """The hypercalls of `plan`, all to shared; equal plans give equal programs."""
    return tuple(
        Op(OpKind.HYPERCALL, (plan.number, gpa, pages, 0, 0))
        for gpa, pages in islice(_ranges(plan), plan.notifications)
    )


def _ranges(plan: StormPlan) -> Iterator[tuple[int, int]]:
    """(GPA, pages) without end: each round one area of every sort, page by page where OVMF is."""
    flash, flash_pages = _FLASH
    holes = _hole(plan)
    for turn, mmio in enumerate(cycle(_MMIO)):
        yield flash + (turn % flash_pages << PAGE_SHIFT), 1
        yield mmio
        yield plan.acpi + (turn % plan.acpi_pages << PAGE_SHIFT), 1
        yield holes[turn % len(holes)]


def _hole(plan: StormPlan) -> tuple[tuple[int, int], ...]:
    """Memory that is not there, in pieces of 1 GiB from 4 GiB or the end of RAM on."""
    start = max(4 * GIB, plan.memory)
    pages = GIB >> PAGE_SHIFT
    return tuple((gpa, pages) for gpa in range(start, plan.top, GIB)) or ((start, pages),)
