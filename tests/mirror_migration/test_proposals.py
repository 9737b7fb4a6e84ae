# SPDX-License-Identifier: GPL-2.0-or-later
"""The address proposals: what a page is called under each, and what becomes of it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from guestemu.abi.addresses import Gpa, RamAddr
from guestemu.abi.errors import InputError
from guestemu.host.mirror.proposals import (
    OWN_BASE,
    OWN_BLOCK,
    SHIFT,
    HandlerTuple,
    Proposal,
    TupleRegistry,
    block_address,
    command_address,
    handler_tuples,
    mirror_slots,
    place_handler,
    shift_of,
)
from guestemu.host.mirror.side import (
    DIMM,
    DIMM_AT,
    HOLE,
    VIRTIO_MEM,
    VMSA,
    guest_memory,
    handler_pages,
)
from guestemu.study.mirror.cases import CASES, DEFECTIVE, NAMINGS
from guestemu.study.mirror.table import Fate, NamingCell, cells

ABOVE_4G = 0x1_0000_0000


def registry_of(pages: tuple[Gpa, ...]) -> TupleRegistry:
    registry = TupleRegistry()
    for one in handler_tuples(pages):
        assert registry.register(one)
    registry.write_msr(1)
    return registry


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], NamingCell]:
    found = cells((*NAMINGS, *DEFECTIVE))
    return {(cell.naming, cell.page): cell for cell in found}


# The names of pages ------------------------------------------------------------------------------


def test_gpas_exist_only_for_what_the_guest_maps() -> None:
    machine = guest_memory()
    block = machine.blocks
    assert command_address(Proposal.GPA, machine, RamAddr(HOLE)) == ABOVE_4G
    assert command_address(Proposal.GPA, machine, block[DIMM].ram_addr) == DIMM_AT
    for name in (VIRTIO_MEM, VMSA):
        assert command_address(Proposal.GPA, machine, block[name].ram_addr) is None


@pytest.mark.parametrize("proposal", [Proposal.RAM_ADDR, Proposal.TUPLE, Proposal.COPY])
def test_every_page_has_a_ram_addr(proposal: Proposal) -> None:
    machine = guest_memory()
    for block in machine.blocks.values():
        assert command_address(proposal, machine, block.ram_addr) == block.ram_addr


def test_the_block_address_is_right_below_the_hole_only() -> None:
    """D23."""
    machine = guest_memory()
    for ram_addr in (0x100000, HOLE, HOLE + 0x5000):
        right = command_address(Proposal.GPA, machine, RamAddr(ram_addr))
        assert (block_address(machine, RamAddr(ram_addr)) == right) == (ram_addr < HOLE)


# The mapping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", list(Proposal))
def test_every_name_leads_to_its_page(proposal: Proposal) -> None:
    """Command address, plus the handler's shift, through its tables and the mirror's slots."""
    machine = guest_memory()
    pages = handler_pages(proposal, False)
    placement = place_handler(proposal, machine, pages, registry_of(pages))
    slots = mirror_slots(proposal, machine, placement)
    named = 0
    for block in machine.blocks.values():
        if block.name == OWN_BLOCK:
            continue
        name = command_address(proposal, machine, block.ram_addr)
        if name is None:
            continue
        gva = name + shift_of(proposal)
        reach = next(
            one
            for one in placement.reach
            if one.private and 0 <= gva - one.gva < one.gigabytes << 30
        )
        gpa = reach.mirror_gpa + gva - reach.gva
        slot = next(one for one in slots if 0 <= gpa - one.mirror_gpa < one.pages << 12)
        assert slot.ram_addr + gpa - slot.mirror_gpa == block.ram_addr
        named += 1
    assert named == (2 if proposal is Proposal.GPA else 4)


def test_the_handler_is_not_contiguous_and_works_there() -> None:
    """F8, F9."""
    pages = handler_pages(Proposal.RAM_ADDR, False)
    gaps = [later - earlier for earlier, later in pairwise(pages)]
    assert set(gaps) > {0x1000}


def test_proposal_1_shifts_and_keeps_low_memory() -> None:
    machine = guest_memory()
    pages = handler_pages(Proposal.RAM_ADDR, False)
    placement = place_handler(Proposal.RAM_ADDR, machine, pages, TupleRegistry())
    slots = mirror_slots(Proposal.RAM_ADDR, machine, placement)
    assert shift_of(Proposal.RAM_ADDR) == SHIFT == 1 << 42
    assert {slot.mirror_gpa for slot in slots if slot.mirror_gpa < SHIFT} == {0}


@pytest.mark.parametrize("proposal", [Proposal.TUPLE, Proposal.COPY])
def test_the_handler_lies_where_its_tuples_say(proposal: Proposal) -> None:
    machine = guest_memory()
    pages = handler_pages(proposal, False)
    placement = place_handler(proposal, machine, pages, registry_of(pages))
    backing = [page.ram_addr for page in placement.pages]
    assert [page.mirror_gpa for page in placement.pages] == [
        OWN_BASE + 0x1000 * number for number in range(len(pages))
    ]
    if proposal is Proposal.TUPLE:
        assert backing == [machine.ram_addr_of(gpa) for gpa in pages]
    else:
        own = machine.blocks[OWN_BLOCK]
        assert all(own.ram_addr <= page < own.ram_addr + (own.pages << 12) for page in backing)


def test_tuples_are_taken_until_migration_is_first_enabled() -> None:
    """F6: before the first write of MIGRATION_CONTROL bit 0."""
    pages = handler_pages(Proposal.TUPLE, False)
    registry = TupleRegistry()
    for one in handler_tuples(pages[:-1]):
        assert registry.register(one)
    registry.write_msr(0)  # does not enable
    assert not registry.is_closed
    registry.write_msr(1)
    assert not registry.register(HandlerTuple(pages[-1], 1, OWN_BASE))
    assert len(registry.tuples) == len(pages) - 1
    with pytest.raises(InputError, match=rf"{pages[-1]:#x}: in no tuple; register it before"):
        place_handler(Proposal.TUPLE, guest_memory(), pages, registry)


def test_a_handler_page_without_ram() -> None:
    pages = (*handler_pages(Proposal.GPA, False)[:-1], Gpa(0xF000_0000))
    with pytest.raises(InputError, match="no RAM there; map it before the migration"):
        place_handler(Proposal.GPA, guest_memory(), pages, TupleRegistry())


# The table ---------------------------------------------------------------------------------------


def test_what_becomes_of_pages(table: dict[tuple[str, str], NamingCell]) -> None:
    right, kept, refused = Fate.RIGHT, Fate.KEPT, Fate.REFUSED
    pages = [case.name for case in CASES]
    rows = {naming.name: [table[naming.name, page].fate for page in pages] for naming in NAMINGS}
    assert pages[1:] == ["PCI hole", "hot-plugged", "unmapped", "VMSA", "handler", "other build's"]
    assert rows == {
        "GPA (prototype)": [right, right, right, refused, refused, kept, refused],
        "1: ram_addr_t": [right, right, right, right, right, kept, refused],
        "2: tuples": [right, right, right, right, right, kept, refused],
        "3: copy": [right, right, right, right, right, right, right],
    }


def test_what_defects_corrupt(table: dict[tuple[str, str], NamingCell]) -> None:
    names = {naming.name for naming in DEFECTIVE}
    wrong = {key for key, cell in table.items() if cell.fate is Fate.CORRUPTED}
    assert wrong == {
        *(("GPA of the block", page) for page in ("PCI hole", "unmapped", "VMSA")),
        *((name, "other build's") for name in names if "no guard" in name and name[0] != "3"),
    }
    assert "handler was overwritten" in table["1, no guard", "other build's"].reason
    assert "mmio" in table["GPA of the block", "PCI hole"].reason
