# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror VM: the RAM and the key of another VM, memory slots of its own (F4).

The mirror has a CPU of its own (another engine). Its accesses settle and mark the pages of the
source's two-view RAM by the very hook that the source's CPU uses, so what one of them stores is
what the other one loads, as through one memory controller with one ASID.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, RamAddr
from guestemu.abi.errors import InputError
from guestemu.host.mirror.interface import MirrorSlot
from guestemu.machine.memory import GuestRam


class SharedRamMirror:
    """A VM over the RAM and under the key of another, with memory slots of its own (F4).

    Without `slots` the whole RAM appears at the same addresses.
    """

    def __init__(self, ram: GuestRam, slots: Iterable[MirrorSlot] | None = None) -> None:
        self._ram = ram
        self._slots: tuple[MirrorSlot, ...] = ()
        self._starts: list[int] = []
        self.generation = 0
        """Counts changes of the slots: a vCPU forgets its translations then."""
        whole = (MirrorSlot(Gpa(0), RamAddr(0), ram.frames),)
        self.set_slots(whole if slots is None else slots)

    @property
    def ram(self) -> GuestRam:
        """The source's RAM."""
        return self._ram

    @property
    def slots(self) -> tuple[MirrorSlot, ...]:
        """The slots, from low to high mirror GPA."""
        return self._slots

    def set_slots(self, slots: Iterable[MirrorSlot]) -> None:
        """KVM_SET_USER_MEMORY_REGION for all of them.

        Raises `InputError` where two overlap in the mirror's GPA space or one reaches beyond the
        RAM; nothing changes then.
        """
        chosen = tuple(sorted(slots, key=lambda slot: slot.mirror_gpa))
        if chosen == self._slots:
            return
        end = 0
        for slot in chosen:
            where = f"mirror slot at {slot.mirror_gpa:#x}"
            if (slot.mirror_gpa | slot.ram_addr) & PAGE_MASK or slot.pages <= 0:
                raise InputError(f"{where}: give whole pages")
            if slot.mirror_gpa < end:
                raise InputError(f"{where}: overlaps the slot before; give each GPA once")
            if not 0 <= slot.ram_addr >> PAGE_SHIFT <= self._ram.frames - slot.pages:
                raise InputError(
                    f"{where}: RAM {slot.ram_addr:#x} and {slot.pages} pages; RAM has "
                    f"{self._ram.frames} pages"
                )
            end = slot.mirror_gpa + slot.pages * PAGE_SIZE
        self._slots = chosen
        self._starts = [slot.mirror_gpa for slot in chosen]
        self.generation += 1

    def ram_addr_of(self, mirror_gpa: int) -> RamAddr | None:
        """The RAM that backs a mirror GPA, or None."""
        index = bisect_right(self._starts, mirror_gpa) - 1
        if index < 0:
            return None
        slot = self._slots[index]
        offset = mirror_gpa - slot.mirror_gpa
        return RamAddr(slot.ram_addr + offset) if offset < slot.pages * PAGE_SIZE else None

    def mirror_gpas_of(self, ram_addr: RamAddr) -> list[Gpa]:
        """Every mirror GPA at which a page of RAM appears."""
        return [
            Gpa(slot.mirror_gpa + ram_addr - slot.ram_addr)
            for slot in self._slots
            if 0 <= ram_addr - slot.ram_addr < slot.pages * PAGE_SIZE
        ]
