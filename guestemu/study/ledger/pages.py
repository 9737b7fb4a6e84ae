# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest wrote, and what of it is there when it is read: the two verdicts of `lost`.

The same definitions as the check `lost` (H.4 item 4), for any address and not only for the pages
that programs name: buffers of dma_alloc_coherent() and .bss..decrypted are in no region.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.x86 import PTE_ADDRESS_MASK
from guestemu.events.memory import LeafChange
from guestemu.guest.base import Guest
from guestemu.machine.cache import peek
from guestemu.machine.memory import GuestRam
from guestemu.machine.paging import translate


class Loss(msgspec.Struct, frozen=True):
    """Pages whose bytes are wrong: `strict` whatever flips came after the write, `defined` only
    those not flipped since; `size` are the wrong bytes of the latter."""

    strict: int = 0
    defined: int = 0
    size: int = 0


class Mapped(msgspec.Struct, frozen=True):
    """Where an address is: GPA of its page, and whether its PTE has the C-bit."""

    gpa: Gpa
    is_private: bool


@dataclass(slots=True)
class _Page:
    gfn: int
    value: int
    is_defined: bool


NOTHING_LOST: Final = Loss()


def mapped(guest: Guest, gva: int) -> Mapped | None:
    """The page of `gva` by the guest's present page tables; None where nothing is mapped."""
    machine = guest.machine
    root = Gpa(machine.current.read_register("cr3") & PTE_ADDRESS_MASK & ~machine.pte_cbit)
    found = translate(machine.ram, machine.bit, root, Gva(gva))
    if found is None or found[0] >> PAGE_SHIFT >= machine.ram.frames:
        return None
    return Mapped(Gpa(found[0] & -PAGE_SIZE), found[1])


class WrittenPages:
    """The pages that were filled with one byte each, by address."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}

    def note(self, gva: int, gpa: Gpa, value: int) -> None:
        """The page at `gva`, which the guest means to be at `gpa`, was filled with `value`."""
        self._pages[gva] = _Page(gpa >> PAGE_SHIFT, value, True)

    def flip(self, flips: Iterable[LeafChange]) -> None:
        """Pages that changed their C-bit: their content is undefined until it is written again."""
        for flip in flips:
            for page in self._pages.values():
                if flip.gfn <= page.gfn < flip.gfn + flip.pages:
                    page.is_defined = False

    def abandon(self, frames: range) -> None:
        """These frames are never read again: their content is also undefined."""
        for page in self._pages.values():
            if page.gfn in frames:
                page.is_defined = False

    def addresses(self) -> Iterator[int]:
        """The addresses of all pages."""
        return iter(self._pages)

    def judge(self, guest: Guest, ram: GuestRam | None = None) -> Loss:
        """Compares all pages, read through the page tables of `guest` from its RAM, or from `ram`,
        a copy elsewhere. A page that is no longer mapped is passed over."""
        strict = defined = size = 0
        source = guest.machine.ram if ram is None else ram
        for gva, page in self._pages.items():
            where = mapped(guest, gva)
            if where is None:
                continue
            content = peek(source, where.gpa, PAGE_SIZE, where.is_private)
            wrong = PAGE_SIZE - content.count(page.value)
            if wrong:
                strict += 1
                if page.is_defined:
                    defined += 1
                    size += wrong
        return Loss(strict, defined, size)
