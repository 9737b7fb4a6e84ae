# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile hypervisor does to one page of its SNP guest, at any time (N50 to N52, N55).

A lie (psc_lies.py) is told when the guest asks; an attack comes whenever the hypervisor wants, also
between PVALIDATE and the change of a page-table entry. It has RMPUPDATE and the nested page table,
and no key: none of these may give it, or another guest frame, the plaintext of a validated page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from guestemu.machine.rmp import OWN_ASID, Rmp, RmpEntry


class Attacked(Protocol):
    """The SNP guest, as far as its hypervisor reaches it."""

    rmp: Rmp
    attacked: set[int]

    def convert(self, gfn: int, pages: int, private: bool) -> None:
        """User space converts frames."""

    def remap(self, gfn: int, sfn: int) -> None:
        """Other memory behind a frame."""


class PageAttack(msgspec.Struct, frozen=True):
    """One attack on a guest frame; `text` says what is done."""

    name: str
    text: str
    carry_out: Callable[[Attacked, int], None]


def _spare(rmp: Rmp, gfn: int) -> int:
    return rmp.frames + gfn % (rmp.system_frames - rmp.frames)


def _take_neighbour(snp: Attacked, gfn: int) -> int:
    """The frame that is attacked together with `gfn`."""
    other = gfn + 1 if gfn + 1 < snp.rmp.frames else gfn - 1
    snp.attacked.add(other)
    return other


def _own(gfn: int) -> RmpEntry:
    return RmpEntry(assigned=True, asid=OWN_ASID, gfn=gfn)


def _take_back(snp: Attacked, gfn: int) -> None:
    snp.convert(gfn, 1, private=False)


def _assign_again(snp: Attacked, gfn: int) -> None:
    snp.rmp.rmpupdate(snp.rmp.system_frame(gfn), _own(gfn))


def _assign_second(snp: Attacked, gfn: int) -> None:
    snp.rmp.rmpupdate(_spare(snp.rmp, gfn), _own(gfn))


def _remap(snp: Attacked, gfn: int) -> None:
    _assign_second(snp, gfn)
    snp.remap(gfn, _spare(snp.rmp, gfn))


def _restore(snp: Attacked, gfn: int) -> None:
    snp.remap(gfn, gfn)


def _swap(snp: Attacked, gfn: int) -> None:
    rmp = snp.rmp
    other = _take_neighbour(snp, gfn)
    mine, theirs = rmp.system_frame(gfn), rmp.system_frame(other)
    snp.remap(gfn, theirs)
    snp.remap(other, mine)


def _alias(snp: Attacked, gfn: int) -> None:
    snp.remap(_take_neighbour(snp, gfn), snp.rmp.system_frame(gfn))


def _other_guest(snp: Attacked, gfn: int) -> None:
    entry = RmpEntry(assigned=True, asid=OWN_ASID + 1, gfn=gfn)
    snp.rmp.rmpupdate(snp.rmp.system_frame(gfn), entry)


_ALL: Final = (
    PageAttack("take-back", "the frame is the hypervisor's again", _take_back),
    PageAttack("assign-again", "its RMP entry is written anew: not validated", _assign_again),
    PageAttack("assign-second", "a second system frame is assigned to it", _assign_second),
    PageAttack("remap", "a second system frame is assigned and put behind it", _remap),
    PageAttack("restore", "the system frame of the start is put behind it", _restore),
    PageAttack("swap", "it and the next frame change their system frames", _swap),
    PageAttack("alias", "the next frame is mapped to the same system frame", _alias),
    PageAttack("other-guest", "its system frame is assigned to another guest", _other_guest),
)

ATTACKS: Final[Mapping[str, PageAttack]] = {attack.name: attack for attack in _ALL}
"""Every attack by its name; programs name them by their place."""
