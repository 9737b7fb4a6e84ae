# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration handler in a mirror VM in the place of the firmware, as evidence for C15 and C29.

The handler is real guest code with page tables of its own, behind a mirror's memory slots; the
VMM's side names the page to it. Facts F6, F7, F15, F16b, D23; docs/mirror.md.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import Gpa
from guestemu.abi.errors import GuestemuError
from guestemu.host.mirror.host import MirrorPrototypeHost
from guestemu.host.mirror.proposals import Proposal
from guestemu.host.mirror.side import Weakness
from guestemu.host.mirror.world import MemoryKind, MirrorWorld
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Header
from guestemu.program.text import parse_text
from guestemu.study.claims.page_views import KeptBytes, both_views, compare_views
from guestemu.study.claims.result import ClaimWitness, Evidence
from guestemu.study.claims.witness_text import program_witness
from guestemu.study.mirror.cases import CASES, DEFECTIVE, NAMINGS, Naming
from guestemu.study.mirror.table import Fate, NamingCell, cells

GUEST: Final = "migration handler"

GPA: Final = "GPA (prototype)"
BLOCK_GPA: Final = "GPA of the block"
RAM_ADDR: Final = "1: ram_addr_t"
HOLE: Final = "PCI hole"

_ROWS: Final = (GPA, BLOCK_GPA, RAM_ADDR)
COLUMNS: Final = (HOLE, "hot-plugged", "unmapped", "VMSA")
"""Two kinds of pages that the guest maps, then two that it does not."""

_PAGE: Final = 1
_VALUE: Final = 0x5A


# C29 ------------------------------------------------------------------------------------------


class NamedPages:
    """What became of pages that VMMs named to their handlers, by the name's kind and the page's.

    `gpas_suffice`: every one arrives by its GPA. `gpas_need_mapping`: those that the guest maps do,
    also above the hole, if the GPA is not its block's; the others arrive by ram_addr_t alone.
    """

    def __init__(self, table: dict[tuple[str, str], NamingCell] | None = None) -> None:
        self.table = name_pages() if table is None else table

    def _fates(self, naming: str) -> list[Fate]:
        return [self.table[naming, page].fate for page in COLUMNS]

    @property
    def gpas_suffice(self) -> bool:
        """See the class."""
        return set(self._fates(GPA)) == {Fate.RIGHT}

    @property
    def gpas_need_mapping(self) -> bool:
        """See the class."""
        return (
            self._fates(GPA) == [Fate.RIGHT, Fate.RIGHT, Fate.REFUSED, Fate.REFUSED]
            and set(self._fates(RAM_ADDR)) == {Fate.RIGHT}
            and self.table[BLOCK_GPA, HOLE].fate is Fate.CORRUPTED
        )

    def evidence(self) -> tuple[Evidence, ...]:
        """A line for each naming and page."""
        return tuple(
            Evidence(f"handler, {naming}, page: {page}", cell.fate.value, how=cell.reason)
            for (naming, page), cell in self.table.items()
        )

    def witness(self) -> ClaimWitness:
        """A page above the hole that a block's address names wrongly."""
        program = parse_text(self.table[BLOCK_GPA, HOLE].program, HOLE)
        return program_witness(program.header, program.ops, "the handler stops at an MMIO address")


def name_pages() -> dict[tuple[str, str], NamingCell]:
    """Runs the cells of docs/mirror.md's table that C29 is about."""
    namings = [naming for naming in (*NAMINGS, *DEFECTIVE) if naming.name in _ROWS]
    cases = [case for case in CASES if case.name in COLUMNS]
    return {(cell.naming, cell.page): cell for cell in cells(namings, cases)}


# C15 ------------------------------------------------------------------------------------------


def send_by_handler(is_shared: bool, world: MirrorWorld | None = None) -> KeptBytes:
    """A page of the guest, mapped with C=0 or C=1 and filled, goes through both handlers: the
    handler reads and writes with C=1 whatever the guest's mapping is (F15).

    Raises `GuestemuError` if a handler does not take it.
    """
    world = MirrorWorld() if world is None else world
    world.write(MemoryKind.LOW, _PAGE, _VALUE, is_shared)
    gpa = Gpa(world.ram_addr(MemoryKind.LOW, _PAGE))
    before = both_views(world.source.ram, gpa)
    answers = world.save(MemoryKind.LOW, _PAGE), world.restore(0, MemoryKind.LOW, _PAGE)
    if any(answers):
        raise GuestemuError(f"migration handler: SAVE and RESTORE gave {answers}")
    found = compare_views(before, both_views(world.target.ram, gpa))
    world.close()
    return found


def exported_shared_page() -> ClaimWitness:
    """The program of a VMM that gives every page to the handler, and the guest's load of one."""
    place = int(MemoryKind.LOW)
    ops = (
        Op(OpKind.MIRROR_SETUP, (int(Proposal.RAM_ADDR), 0)),
        Op(OpKind.MIRROR_WRITE, (place, _PAGE, _VALUE, 1)),
        Op(OpKind.MIRROR_MIGRATE, (place, _PAGE)),
        Op(OpKind.MIRROR_LOAD, (place, _PAGE)),
    )
    switches = Naming("", Proposal.RAM_ADDR, (Weakness.UNCHECKED_STATUS.value,)).switches
    header = Header(host=MirrorPrototypeHost.name, switches=switches)
    return program_witness(header, tuple(map(canonical_op, ops)), "not 0x5a any more")
