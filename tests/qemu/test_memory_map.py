# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM blocks, sections, slots and the dirty log."""

from __future__ import annotations

import pytest
from bitarray import bitarray

from guestemu.abi.addresses import Gfn, RamAddr
from guestemu.abi.errno import EINVAL
from guestemu.abi.errors import InputError
from guestemu.host.qemu.dirty_log import KvmDirtyLogs, QemuDirtyLog
from guestemu.host.qemu.memory_map import MemoryMap, PcLayout, pc_machine
from guestemu.host.qemu.patch_sets import ORDERS, defects_left, parse_order, patch_set

MIB = 1 << 20
SMALL = PcLayout(ram=64 * MIB, hole_start=32 * MIB, above_base=48 * MIB, vga=MIB, vga_base=40 * MIB)


def test_a_page_above_the_hole_has_another_ram_addr() -> None:
    machine = pc_machine(SMALL)
    assert machine.ram_addr_of(32 * MIB - 1) == 32 * MIB - 1
    assert machine.ram_addr_of(32 * MIB) is None
    assert machine.ram_addr_of(48 * MIB + 5) == 32 * MIB + 5
    assert machine.gpa_of(RamAddr(32 * MIB)) == 48 * MIB
    assert machine.ram_addr_of(40 * MIB) == 64 * MIB
    assert machine.top_gfn == 80 * MIB >> 12
    block = machine.block_of(RamAddr(64 * MIB))
    assert block is not None
    assert (block.name, block.mr_addr) == ("vga.vram", 40 * MIB)


def test_the_hole_of_a_real_pc() -> None:
    machine = pc_machine(PcLayout(ram=6 << 30))
    assert machine.gpa_of(RamAddr(2 << 30)) == 4 << 30
    assert [slot.pages for slot in machine.slots()] == [2 << 18, 4 << 18]


def test_every_page_converts_there_and_back() -> None:
    machine = pc_machine(SMALL)
    for section in machine.sections:
        for gpa in range(section.gpa, section.end, 4096 * 37):
            address = machine.ram_addr_of(gpa)
            assert address is not None
            assert machine.gpa_of(address) == gpa


def test_hot_plug_and_unplug() -> None:
    machine = pc_machine(SMALL)
    dimm = machine.hot_plug("dimm1", 2 * MIB, 96 * MIB)
    assert machine.gpa_of(dimm.ram_addr) == 96 * MIB
    machine.hot_unplug("dimm1", keeps_block=True)
    assert machine.gpa_of(dimm.ram_addr) is None
    assert machine.block_of(dimm.ram_addr) == dimm
    machine.map("dimm1", 100 * MIB)
    assert machine.gpa_of(dimm.ram_addr) == 100 * MIB
    machine.hot_unplug("dimm1")
    assert machine.block_of(dimm.ram_addr) is None


def test_a_failed_hot_plug_changes_nothing() -> None:
    machine = pc_machine(SMALL)
    before = (machine.ram_pages, machine.sections, dict(machine.blocks))
    with pytest.raises(InputError, match=r"overlaps block 'pc\.ram'"):
        machine.hot_plug("dimm1", 2 * MIB, 79 * MIB)
    assert (machine.ram_pages, machine.sections, dict(machine.blocks)) == before


def test_a_remap_cuts_sections() -> None:
    """SMM and PAM: 0xA0000 to 0xC0000 goes, both neighbours stay with their offsets (D33)."""
    machine = pc_machine(SMALL)
    machine.unmap(0xA0000, 0x20000)
    assert [(s.gpa, s.end, s.offset) for s in machine.sections[:2]] == [
        (0, 0xA0000, 0),
        (0xC0000, 32 * MIB, 0xC0000),
    ]
    assert machine.gpa_of(RamAddr(0xA0000)) is None
    machine.map("vga.vram", 0xA0000, 0, 0x20000)
    assert machine.ram_addr_of(0xA0000) == 64 * MIB


def test_blocks_begin_at_64_pages() -> None:
    machine = MemoryMap()
    machine.add_block("a", 4096)
    assert machine.add_block("b", 4096).ram_addr == 64 * 4096


@pytest.mark.parametrize(
    ("name", "gpa", "offset", "size"),
    [("pc.ram", 1, 0, 4096), ("pc.ram", 1 << 30, 63 << 20, 2 << 20), ("none", 0, 0, 4096)],
)
def test_bad_sections(name: str, gpa: int, offset: int, size: int) -> None:
    with pytest.raises(InputError):
        pc_machine(SMALL).map(name, gpa, offset, size)


def test_slots_of_a_bounded_size() -> None:
    machine = pc_machine(PcLayout(ram=MIB, max_slot_pages=128))
    assert [(s.index, s.gfn, s.pages, s.ram_addr) for s in machine.slots()] == [
        (0, 0, 128, 0),
        (1, 128, 128, 128 << 12),
    ]


def test_an_auto_clear_log_is_empty_after_get() -> None:
    log = QemuDirtyLog(100, is_manual=False)
    log.mark(7)
    assert log.get().count() == 1
    assert log.get().count() == 0
    assert log.clear(0, 100, log.get()) == -EINVAL


def test_a_manual_log_keeps_until_cleared() -> None:
    log = QemuDirtyLog(100, is_manual=True)
    log.mark(7)
    log.mark(70)
    found = log.get()
    assert found == log.get()
    log.mark(8)
    assert log.clear(0, 64, found[:64]) == 0
    assert list(log.get().search(bitarray("1"))) == [8, 70]


def test_a_write_between_get_and_clear_goes_with_the_clear() -> None:
    """D30: it is not reported again; harmless for data sent after CLEAR."""
    log = QemuDirtyLog(64, is_manual=True)
    log.mark(7)
    found = log.get()
    log.mark(7)
    assert log.clear(0, 64, found) == 0
    assert not log.get().any()


@pytest.mark.parametrize(("first", "pages"), [(1, 64), (0, 65), (64, 64), (128, 0), (0, 101)])
def test_clear_of_an_odd_range(first: int, pages: int) -> None:
    log = QemuDirtyLog(100, is_manual=True)
    assert log.clear(first, pages, bitarray(128, endian="little")) == -EINVAL
    assert log.clear(64, 36, bitarray(36, endian="little")) == 0


def test_marks_go_to_their_slot() -> None:
    machine = pc_machine(SMALL)
    logs = KvmDirtyLogs(machine)
    assert logs.mark(Gfn(48 * MIB >> 12))
    assert not logs.mark(Gfn(33 * MIB >> 12))
    assert [log.get().count() for log in logs.logs] == [0, 0, 1]


def test_orders() -> None:
    assert parse_order("GECS") == ORDERS["3"]
    for bad in ("", "D", "DSS", "SD", "DCS", "S", "DGS", "XS"):
        with pytest.raises(InputError, match=f"order '{bad}'"):
            parse_order(bad)


def test_unknown_switches_are_named() -> None:
    with pytest.raises(InputError, match="'mask'"):
        defects_left(patch_set("2019-v2"), ["mask"])
    with pytest.raises(InputError, match="2021-v4"):
        patch_set("2022")
