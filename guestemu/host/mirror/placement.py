# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a handler's pages lie, in the mirror's GPA space and in RAM, and what its tables map.

The prototype's handler is a part of the guest's firmware: its pages are not contiguous (F9), and
its tables map the mirror's GPA space 1:1 with the C-bit, plus 1 GiB without it at a large offset
(F8, F11). All of this is data here, so that other address spaces (F6) need no other code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PUD_SIZE, Gpa, Gva, RamAddr
from guestemu.abi.errors import InputError
from guestemu.host.mirror.interface import MirrorSlot
from guestemu.host.mirror.mailbox import MAILBOX_GPA, MAILBOX_PAGES, WINDOW_GVA

IDENTITY_GIGABYTES: Final = 512
"""What the prototype's tables reach from address 0 on (F11)."""

_ENTRY_SPAN: Final = 1 << 39
_MAILBOX_RAM: Final = RamAddr(MAILBOX_GPA)


class PagePlace(msgspec.Struct, frozen=True):
    """One page: `mirror_gpa` in the mirror, `ram_addr` in RAM (bytes)."""

    mirror_gpa: Gpa
    ram_addr: RamAddr


class Reach(msgspec.Struct, frozen=True):
    """A range that the handler's tables map with leaves of 1 GiB: `gigabytes` from `gva` on go to
    the mirror GPAs from `mirror_gpa` on, with C=1 if `private`."""

    gva: Gva
    mirror_gpa: Gpa
    gigabytes: int
    private: bool = True


PROTOTYPE_REACH: Final = (
    Reach(Gva(0), Gpa(0), IDENTITY_GIGABYTES),
    Reach(Gva(WINDOW_GVA), Gpa(0), 1, private=False),
)
"""Everything 1:1 with C=1, and the first GiB with C=0 (F11)."""


class Placement(msgspec.Struct, frozen=True):
    """A handler's pages.

    One page each of code, context (key, counters), bounce buffer and stack, `tables` for the page
    tables (the first is the root), all private; `mailbox` is the first of two shared pages that are
    adjacent in both spaces. The mailbox's mirror GPA has to be in a range of `reach` with C=0, all
    others in one with C=1; the first range that fits is taken.
    """

    code: PagePlace
    context: PagePlace
    bounce: PagePlace
    stack: PagePlace
    tables: tuple[PagePlace, ...]
    mailbox: PagePlace
    reach: tuple[Reach, ...] = PROTOTYPE_REACH

    @property
    def private_pages(self) -> tuple[PagePlace, ...]:
        """All pages but the mailbox."""
        return (self.code, self.context, self.bounce, self.stack, *self.tables)

    @property
    def pages(self) -> tuple[PagePlace, ...]:
        """All pages, the mailbox's two last."""
        second = PagePlace(
            Gpa(self.mailbox.mirror_gpa + PAGE_SIZE), RamAddr(self.mailbox.ram_addr + PAGE_SIZE)
        )
        return (*self.private_pages, self.mailbox, second)

    @property
    def own_slots(self) -> tuple[MirrorSlot, ...]:
        """A slot for each of the pages, for a mirror in which no other slot covers them."""
        return tuple(MirrorSlot(page.mirror_gpa, page.ram_addr, 1) for page in self.pages)

    def gva(self, mirror_gpa: int, private: bool = True) -> Gva:
        """The address at which the handler reaches a mirror GPA; `InputError` if it does not."""
        for reach in self.reach:
            offset = mirror_gpa - reach.mirror_gpa
            if reach.private == private and 0 <= offset < reach.gigabytes * PUD_SIZE:
                return Gva(reach.gva + offset)
        raise InputError(
            f"mirror GPA {mirror_gpa:#x}: the handler's page tables do not map it with "
            f"C={int(private)}; add a range to `reach`"
        )

    def gvas(self, mirror_gpa: int) -> list[Gva]:
        """Every address with C=1 at which the handler reaches a mirror GPA."""
        return [
            Gva(reach.gva + mirror_gpa - reach.mirror_gpa)
            for reach in self.reach
            if reach.private and 0 <= mirror_gpa - reach.mirror_gpa < reach.gigabytes * PUD_SIZE
        ]


def tables_needed(reach: Iterable[Reach]) -> int:
    """Pages of page tables for `reach`: a root, and one for each 512 GiB that is touched."""
    entries: set[int] = set()
    for one in reach:
        last = one.gva + one.gigabytes * PUD_SIZE - 1
        entries |= set(range(one.gva // _ENTRY_SPAN, last // _ENTRY_SPAN + 1))
    return 1 + len(entries)


def place_identity(
    pages: Iterable[RamAddr],
    mailbox: RamAddr = _MAILBOX_RAM,
    reach: tuple[Reach, ...] = PROTOTYPE_REACH,
) -> Placement:
    """A handler in a mirror whose GPAs are its RAM addresses, as the prototype's.

    `pages` are RAM addresses, in the order code, context, bounce, stack, tables; they need not be
    contiguous. Raises `InputError` for too few, unaligned or doubled ones.
    """
    chosen = list(pages)
    need = 4 + tables_needed(reach)
    if len(chosen) < need:
        raise InputError(f"handler pages: {len(chosen)} given; give {need}")
    taken = [*chosen[:need], *(mailbox + i * PAGE_SIZE for i in range(MAILBOX_PAGES))]
    if len(set(taken)) < len(taken) or any(page % PAGE_SIZE for page in taken):
        raise InputError("handler pages: give page-aligned addresses, each once")
    code, context, bounce, stack, *tables = (
        PagePlace(Gpa(page), RamAddr(page)) for page in chosen[:need]
    )
    at = PagePlace(Gpa(mailbox), RamAddr(mailbox))
    return Placement(code, context, bounce, stack, tuple(tables), at, reach)
