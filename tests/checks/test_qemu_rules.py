# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migrating QEMU believes, page by page: the check's rules on a machine with a hole, device
RAM and memory above 4 GiB, its record and its status changed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guestemu.checks.qemu_status import QemuStatusCheck
from guestemu.host.qemu.patch_sets import patch_set
from guestemu.host.qemu.status import ListStatus
from guestemu.host.qemu.world import ABOVE, ABOVE_GFN, BELOW, DEVICE_GFN, HOLE, QemuWorld
from guestemu.program.ops import Op, OpKind

BITMAP, LIST = "2020-v1", "2021-v4"
RAM = BELOW + ABOVE
SYNC, RESIZE = Op(OpKind.QEMU_SYNC), Op(OpKind.QEMU_RESIZE, (0,))
HANDOVER, RESET = Op(OpKind.QEMU_HANDOVER), Op(OpKind.QEMU_RESET)
EDGES = (0, HOLE[0] - 1, HOLE[1], BELOW - 1, BELOW, RAM - 1)
"""The first and the last page of each section of RAM."""


def gfn_of(page: int) -> int:
    return page if page < BELOW else ABOVE_GFN + page - BELOW


class Host:
    """A host whose QEMU has no defect."""

    def __init__(self, version: str = BITMAP) -> None:
        self.world = QemuWorld(patch_set(version), frozenset())
        self.check = QemuStatusCheck()

    def qemu_world(self) -> QemuWorld:
        return self.world

    def share(self, *gfns: int) -> None:
        self.world.regions += [(gfn, gfn + 1) for gfn in gfns]

    def after(self, op: Op, value: int = 0, index: int = 1) -> list[str]:
        """What the check says of an operation that has been done."""
        outcome = SimpleNamespace(value=value)
        seen = SimpleNamespace(index=index, op=op, host=self, outcome=outcome)
        found = list(self.check.after(seen))
        assert all((one.check, one.op) == ("qemu-status", index) for one in found)
        return [one.message for one in found]


def wrong(page: int, word: str, name: str = "pc.ram") -> list[str]:
    return [f"page {page:#x} of {name} counts as {word}, the guest said otherwise"]


# Status after a sync ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [BITMAP, LIST])
def test_a_sync_copies_the_record(version: str) -> None:
    host = Host(version)
    assert host.after(SYNC) == []
    host.share(*map(gfn_of, EDGES), DEVICE_GFN, HOLE[0], BELOW, ABOVE_GFN + ABOVE)
    host.world.sync()
    assert host.after(SYNC) == []


@pytest.mark.parametrize("page", [*EDGES, 64, HOLE[0], HOLE[1] - 1])
def test_a_page_whose_copy_is_wrong(page: int) -> None:
    host = Host()
    host.world.status.block_maps["pc.ram"].invert(page)
    assert host.after(SYNC) == wrong(page, "shared")
    if page not in range(*HOLE):
        host.share(gfn_of(page))
        assert host.after(SYNC) == []
        host.world.status.block_maps["pc.ram"].invert(page)
        assert host.after(SYNC) == wrong(page, "private")


def test_the_first_wrong_page_of_the_first_block_is_told() -> None:
    host = Host()
    for page in (70, 300):
        host.world.status.block_maps["pc.ram"].invert(page)
    host.world.status.block_maps["vga.vram"].invert(2)
    assert host.after(SYNC) == wrong(70, "shared")


@pytest.mark.parametrize("page", [*EDGES, 64])
def test_a_page_of_which_the_list_says_something_else(page: int) -> None:
    host = Host(LIST)
    host.share(gfn_of(page))
    assert host.after(SYNC) == []
    seen = SimpleNamespace(regions=[])
    world = host.world
    world.status = ListStatus(world.machine, world.version, frozenset(), seen)
    assert host.after(SYNC) == wrong(page, "private")
    seen.regions = [(gfn_of(page), gfn_of(page) + 1)]
    assert host.after(SYNC) == []
    world.regions.clear()
    assert host.after(SYNC) == wrong(page, "shared")


def test_a_page_without_gpa_has_no_status_in_a_list() -> None:
    host = Host(LIST)
    host.share(*range(*HOLE))
    assert host.after(SYNC) == []


def test_a_resize_keeps_the_status_of_the_last_sync() -> None:
    host = Host()
    assert host.after(RESIZE) == [], "no sync yet"
    host.world.sync()
    assert host.after(SYNC, index=0) == []
    host.share(5)
    assert host.after(RESIZE) == [], "the guest's later calls are not copied"
    host.world.status.block_maps["pc.ram"].setall(False)
    assert host.after(RESIZE, value=-25) == []
    assert host.after(RESIZE) == wrong(0, "shared")
    assert host.after(Op(OpKind.QEMU_STATUS, (0, 5, 1, 0))) == []
    assert host.after(RESIZE, index=0) == [], "of the next program"


# Handover and reset -------------------------------------------------------------------------------


def handed_over(version: str, source: list, target: list, value: int = 0) -> bool:
    """Whether the check takes it that the destination has the regions `target`."""
    host = Host(version)
    host.world.regions, host.world.received = source, target
    found = host.after(HANDOVER, value)
    assert found in ([], ["the destination has other shared pages than the source"])
    return not found


@pytest.mark.parametrize("version", [BITMAP, LIST])
def test_a_handover_carries_all_shared_pages(version: str) -> None:
    for page in EDGES:
        region = [(gfn_of(page), gfn_of(page) + 1)]
        assert handed_over(version, region, region)
        assert not handed_over(version, region, [])
        assert not handed_over(version, [], region)
        assert handed_over(version, region, [], value=-22)
    assert handed_over(version, [(2, 9)], [(2, 5), (5, 9)])
    assert handed_over(version, [(2, 9)], [(5, 9), (2, 5)])
    assert not handed_over(version, [(2, 9)], [(2, 8)])
    assert not handed_over(version, [(2, 9)], [(3, 9)])


def test_a_bitmap_carries_what_is_memory_and_a_list_everything() -> None:
    beyond = [(HOLE[0], HOLE[1]), (BELOW, DEVICE_GFN), (ABOVE_GFN + ABOVE, 1 << 40)]
    for region in beyond:
        assert handed_over(BITMAP, [region], [])
        assert not handed_over(LIST, [region], [])
    assert not handed_over(BITMAP, [(DEVICE_GFN, DEVICE_GFN + 1)], [])
    assert not handed_over(BITMAP, [(BELOW - 1, 1 << 40)], [(BELOW, 1 << 40)])
    assert handed_over(BITMAP, [(0, 1 << 40)], [(0, 1 << 41)])


def test_after_a_reset_nothing_is_shared() -> None:
    host = Host()
    assert host.after(RESET) == []
    host.share(1, 5)
    assert host.after(RESET) == ["2 shared regions survived the reset"]
    assert host.after(RESET, value=-25) == []


# Ends of a migration, and records -----------------------------------------------------------------


@pytest.mark.parametrize("state", ["sending", "sent", "running"])
def test_after_a_failed_migration_the_guest_runs(state: str) -> None:
    host = Host()
    host.world.firmware.state = state
    for step in range(8):
        is_wrong = step % 4 in (2, 3) and state != "running"
        expected = [f"the migration is over and the firmware's guest {state}"]
        assert host.after(Op(OpKind.QEMU_SEND, (step,))) == expected * is_wrong
        assert host.after(Op(OpKind.QEMU_SEND, (step,)), value=-5) == []


TOP = ABOVE_GFN + ABOVE


@pytest.mark.parametrize(
    ("kind", "start", "pages", "size", "is_good"),
    [
        (0, 0, 1, 8, True),
        (6, 0, 1, 8, True),
        (1, 0, 1, 8, False),
        (5, 0, 1, 8, False),
        (0, 0, 64, 8, True),
        (0, 0, 65, 16, True),
        (0, 0, 65, 8, False),
        (0, 0, 64, 16, False),
        (0, 0, 0, 0, False),
        (0, 1, 1, 8, False),
        (0, 0x800, 1, 8, False),
        (0, (TOP - 1) << 12, 1, 8, True),
        (0, (TOP - 1) << 12, 2, 8, False),
        (0, TOP << 12, 1, 8, False),
    ],
)
def test_which_record_has_to_be_understood(kind, start, pages, size, is_good) -> None:
    op = Op(OpKind.QEMU_RECORD, (kind, start, pages, size, 0xFF))
    told = ["a well-formed status record was not understood"]
    host = Host()
    assert [host.after(op, value) for value in (1, -5)] == [[], []]
    for value in (0, 2, -22):
        assert host.after(op, value) == told * is_good
        assert Host(LIST).after(op, value) == [], "its records are lists"
    assert host.after(Op(OpKind.QEMU_STATUS, (0, 0, 1, 0))) == []


def test_hosts_with_a_migrating_qemu_are_judged() -> None:
    host = Host()
    assert QemuStatusCheck.applies(host)
    other = SimpleNamespace()
    assert not QemuStatusCheck.applies(other)
    host.share(1)
    seen = SimpleNamespace(index=1, op=RESET, host=other, outcome=SimpleNamespace(value=0))
    assert list(host.check.after(seen)) == []
    assert host.after(RESET) == ["1 shared regions survived the reset"]
    assert list(host.check.after(seen)) == []
    kinds = {kind for kind in OpKind if kind.name.startswith("QEMU_")}
    assert QemuStatusCheck.kinds == kinds, "asked of each operation on QEMU"
