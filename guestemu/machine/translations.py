# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB of each vCPU, as far as it outlives a change of the vCPU that executes.

The emulated CPU has one TLB, which every such change empties. So a vCPU would never use a
translation that another one has changed, and a missing remote flush would have no effect. Here each
vCPU keeps what its page walks found until it executes an instruction that invalidates it: INVLPG,
MOV to CR3 (all but global pages), MOV to CR4 (all; Intel SDM volume 3, section 4.10.4). Real TLBs
are small and lose entries early; this one keeps all, which the architecture allows. As there, an
access that an entry refuses is walked again before it faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, Gva
from guestemu.abi.x86 import PTE_GLOBAL
from guestemu.machine.paging import Leaf

_SHIFTS: Final = tuple((level, PAGE_SHIFT + 9 * (level - 1)) for level in (1, 2, 3))

Held = dict[tuple[int, int], Leaf]
"""Leaves by level and page number at that level."""


class Translations:
    """See the module's docstring. Numbers of vCPUs count from 0; `current` says which executes."""

    def __init__(self, vcpus: int, current: Callable[[], int]) -> None:
        self._held: list[Held] = [{} for _ in range(vcpus)]
        self._kept: list[Held] = []
        self._current = current

    def find(self, gva: int, vcpu: int | None = None) -> Leaf | None:
        """The leaf by which a vCPU (the current one) translates `gva` without a walk."""
        held = self._held[self._current() if vcpu is None else vcpu]
        for level, shift in _SHIFTS:
            leaf = held.get((level, gva >> shift))
            if leaf is not None:
                return leaf
        return None

    def hold(self, leaf: Leaf, vcpu: int | None = None) -> None:
        """A vCPU (the current one) has walked to `leaf`."""
        held = self._held[self._current() if vcpu is None else vcpu]
        held[leaf.level, leaf.gva >> PAGE_SHIFT + 9 * (leaf.level - 1)] = leaf

    def drop(self, gva: Gva) -> None:
        """The current vCPU invalidates the page at `gva`, of whatever size it is."""
        held = self._held[self._current()]
        for level, shift in _SHIFTS:
            held.pop((level, gva >> shift), None)

    def drop_local(self) -> None:
        """The current vCPU invalidates all but global pages."""
        held = self._held[self._current()]
        for key in [key for key, leaf in held.items() if not leaf.entry & PTE_GLOBAL]:
            del held[key]

    def drop_all(self) -> None:
        """The current vCPU invalidates every page."""
        self._held[self._current()].clear()

    def checkpoint(self) -> None:
        """See `Device`."""
        self._kept = [dict(held) for held in self._held]

    def rollback(self) -> None:
        """See `Device`."""
        self._held = [dict(held) for held in self._kept]
