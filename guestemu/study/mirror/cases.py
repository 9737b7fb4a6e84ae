# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that address proposals treat differently, and the ways to name them: rows and columns.

Source: F6 (the proposals), F7 and D33 (unmapped memory), D23 (the hole), F16 (VMSA), F9.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.host.mirror.host import MirrorPrototypeHost
from guestemu.host.mirror.proposals import Proposal
from guestemu.host.mirror.world import MemoryKind

PAGE: Final = 1
VALUE: Final = 0x5A


class PageCase(msgspec.Struct, frozen=True):
    """A column: a page of `place`; `is_guests`: the guest has content there; `other_build`: the
    destination's firmware has its handler at other pages."""

    name: str
    place: MemoryKind
    is_guests: bool = True
    other_build: bool = False


class Naming(msgspec.Struct, frozen=True):
    """A row: a proposal with handlers and VMMs that have the named defects (of `mirror-2021`)."""

    name: str
    proposal: Proposal
    defects: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The host of a witness."""
        return MirrorPrototypeHost.name if self.defects else "mirror"

    @property
    def switches(self) -> tuple[str, ...]:
        """The defects that are repaired in it."""
        if not self.defects:
            return ()
        return tuple(name for name in MirrorPrototypeHost.switches if name not in self.defects)


CASES: Final = (
    PageCase("low", MemoryKind.LOW),
    PageCase("PCI hole", MemoryKind.ABOVE_HOLE),
    PageCase("hot-plugged", MemoryKind.HOT_PLUGGED),
    PageCase("unmapped", MemoryKind.UNMAPPED),
    PageCase("VMSA", MemoryKind.VMSA),
    PageCase("handler", MemoryKind.OWN, is_guests=False),
    PageCase("other build's", MemoryKind.PEER, other_build=True),
)
"""`handler`: a page that both firmware builds have for the handler. `other build's`: a page of the
guest that only the destination's build has for it."""

NAMINGS: Final = (
    Naming("GPA (prototype)", Proposal.GPA),
    Naming("1: ram_addr_t", Proposal.RAM_ADDR),
    Naming("2: tuples", Proposal.TUPLE),
    Naming("3: copy", Proposal.COPY),
)

DEFECTIVE: Final = (
    Naming("GPA of the block", Proposal.GPA, ("block-gpa",)),
    Naming("GPA, no guard", Proposal.GPA, ("no-guard",)),
    Naming("1, no guard", Proposal.RAM_ADDR, ("no-guard",)),
    Naming("2, no guard", Proposal.TUPLE, ("no-guard",)),
    Naming("3, no guard", Proposal.COPY, ("no-guard",)),
)
"""The same with what the prototype, or a careless handler, has wrong."""
