# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's views: the bit means shared, and each view is memory of its own (T9, T10)."""

from __future__ import annotations

import pytest
from bare_machine import DATA, FRAMES, PRIVATE, SHARED, Bare
from hypothesis import given, settings
from test_machine_views import accesses, code_of

from guestemu.abi.addresses import PAGE_SIZE, Gpa, Gva
from guestemu.abi.x86 import PTE_ADDRESS_MASK
from guestemu.events.memory import LeafChange
from guestemu.machine.exits import Halt
from guestemu.machine.leafmap import LeafMap, Window
from guestemu.machine.machine import MachineConfig
from guestemu.machine.view_bit import sev_bit, tdx_bit

OUT = 0x300_000


@pytest.fixture(
    scope="module",
    params=[(39, True), (39, False), (47, True)],
    ids=["native", "python", "own-walker"],
)
def bare(request: pytest.FixtureRequest) -> Bare:
    bit, native = request.param
    return Bare(MachineConfig(frames=FRAMES, cbit=bit, tdx=True, native_hooks=native))


def test_a_set_bit_is_private_in_a_sev_guest_and_shared_in_a_td() -> None:
    entry = 1 << 47 | 0x1234_5067
    assert sev_bit(47).is_private(entry)
    assert not tdx_bit(47).is_private(entry)
    assert tdx_bit(47).is_private(0x1234_5067)
    assert tdx_bit(47).select(entry, private=True) == 0x1234_5067
    assert tdx_bit(47).select(0x1234_5067, private=False) == entry


def test_private_tables_have_the_bit_clear(bare: Bare) -> None:
    bit = bare.machine.bit
    assert bare.tables.cr3 & bit.mask == 0
    assert bare.tables.walk(Gva(PRIVATE + DATA)).entry & PTE_ADDRESS_MASK == DATA
    assert bare.tables.walk(Gva(SHARED + DATA)).entry & PTE_ADDRESS_MASK == DATA | bit.mask
    current = bare.machine.current
    assert current.translate(PRIVATE + DATA) == (DATA, True)
    assert current.translate(SHARED + DATA) == (DATA, False)


@settings(max_examples=40, deadline=None, database=None)
@given(sequence=accesses)
def test_each_view_reads_what_was_stored_through_it(
    bare: Bare, sequence: list[tuple[bool, bool, int, int, int, int]]
) -> None:
    views = {True: bytearray(8 * PAGE_SIZE), False: bytearray(8 * PAGE_SIZE)}
    wanted = []
    for is_store, private, page, offset, size, value in sequence:
        start = page * PAGE_SIZE + offset
        if is_store:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            views[private][start : start + size] = data
        else:
            wanted.append(int.from_bytes(views[private][start : start + size], "little"))
    code, loads = code_of(sequence)
    assert isinstance(bare.run(code, at=0x20000), Halt)
    ram = bare.machine.ram
    assert [ram.read_u64(Gpa(OUT + 8 * index)) for index in range(loads)] == wanted
    for private, content in views.items():
        assert ram.read(Gpa(DATA), 4 * PAGE_SIZE, private) == content[: 4 * PAGE_SIZE]
    bare.machine.rollback()
    for private in views:
        assert not any(ram.read(Gpa(DATA), 4 * PAGE_SIZE, private))


def test_the_leaf_map_reads_the_bit_as_shared(bare: Bare) -> None:
    window = Window(Gva(PRIVATE), 0, FRAMES)
    leaf_map = LeafMap(bare.machine.ram, bare.tables.root, bare.machine.bit, window, None)
    assert leaf_map.private.all()
    leaf = bare.tables.walk(Gva(PRIVATE + DATA))
    bare.machine.ram.write_u64(leaf.entry_gpa, bare.machine.bit.select(leaf.entry, private=False))
    gfn = DATA // PAGE_SIZE
    assert leaf_map.reread(leaf.entry_gpa) == [
        LeafChange(Gva(PRIVATE + DATA), gfn, 1, private=False, changed=1, is_alias=False)
    ]
    assert not leaf_map.private[gfn]
    bare.machine.rollback()
