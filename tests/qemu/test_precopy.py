# SPDX-License-Identifier: GPL-2.0-or-later
"""Precopy by patch set, against the SEV firmware model and against tokens."""

from __future__ import annotations

import pytest
from qemu_world import PAGE, Record, SevMachine, Token, Wire, page_of, small_machine

from guestemu.abi.addresses import Gfn, RamAddr
from guestemu.abi.errors import InputError
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.qemu.blockers import MigrationBlocked, MigrationBlockers
from guestemu.host.qemu.dirty_log import KvmDirtyLogs
from guestemu.host.qemu.incoming import Incoming, IncomingState
from guestemu.host.qemu.memory_map import BlockKind, MemoryMap, PcLayout, pc_machine
from guestemu.host.qemu.outgoing import page_status
from guestemu.host.qemu.patch_sets import ORDERS, PATCH_SETS, Order, StepKind
from guestemu.host.qemu.precopy import Phase, Precopy
from guestemu.host.qemu.sev_send import OutgoingSev
from guestemu.host.qemu.status import BitmapStatus, PageStatus

REPAIRED = {
    name: [defect.value for defect in version.defects] for name, version in PATCH_SETS.items()
}
SETS = sorted(PATCH_SETS)


class World:
    """One migration: source and destination over `machine`, both with `kind` of memory."""

    def __init__(
        self,
        name: str,
        repaired: list[str] | None = None,
        machine: MemoryMap | None = None,
        *,
        firmware: bool = False,
        order: Order | None = None,
        limit: int = 1 << 60,
        resends_changed: bool = False,
        chunk_pages: int = 64,
    ) -> None:
        repaired = REPAIRED[name] if repaired is None else repaired
        self.machine = machine or small_machine(64)
        gfns = max(self.machine.top_gfn, self.machine.ram_pages)
        self.record, self.arrived = Record(gfns), Record(gfns)
        self.status = page_status(
            self.machine, name, repaired, bitmap=self.record, regions=self.record
        )
        pages = self.machine.ram_pages
        if firmware:
            source = SevMachine("source", pages, "target")
            target = SevMachine("target", pages)
            source.launch()
            self.source_machine, self.target_machine = source, target
            self.source, self.target = source.transport, target.transport
        else:
            self.source, self.target = Token("s", pages), Token("d", pages)
        order = order or self.status.version.order
        self.logs = KvmDirtyLogs(self.machine, is_manual=StepKind.FETCH not in order)
        version, defects = self.status.version, self.status.defects
        self.incoming = Incoming(
            self.machine, version, defects, self.target, self.target, self.arrived
        )
        self.wire = Wire(self.incoming, limit)
        self.sev = OutgoingSev(self.source, defects)
        self.blockers = MigrationBlockers()
        self.options = {
            "order": order,
            "resends_changed": resends_changed,
            "chunk_pages": chunk_pages,
            "blockers": self.blockers,
        }
        self.precopy = self.attempt()

    def attempt(self) -> Precopy:
        return Precopy(self.status, self.logs, self.source, self.sev, self.wire, **self.options)

    def run(self, passes: int = 1) -> None:
        self.precopy.start()
        for _ in range(passes):
            self.precopy.run_pass()
        self.precopy.stop()
        self.precopy.complete()
        assert self.precopy.phase is Phase.COMPLETED
        self.incoming.finish()


def test_every_set_moves_a_guest_through_the_firmware() -> None:
    """Private content re-encrypted, shared bytes as they are, status at the destination."""
    for name in SETS:
        world = World(name, firmware=True)
        source, target = world.source_machine, world.target_machine
        for page in range(8):
            source.write_private(page, page_of(page))
        for page in (9, 10):
            source.write_shared(page, page_of(page))
        world.record.private[9:12] = False
        world.run()
        assert [target.read_private(page) for page in range(8)] == [page_of(p) for p in range(8)]
        assert [target.read_shared(page) for page in (9, 10)] == [page_of(9), page_of(10)]
        assert target.read_shared(11) == bytes(PAGE)
        assert world.arrived.private == world.record.private
        assert (source.firmware_state(), target.firmware_state()) == ("SENT", "RUNNING")
        assert source.read_shared(0) != target.read_shared(0)
        counters = world.precopy.counters
        assert (counters.encrypted, counters.plain, counters.zero) == (61, 2, 1)
        assert world.incoming.can_start
        assert "64 pages of pc.ram overwritten" in world.incoming.report()


def test_a_changed_packet_is_refused_and_said() -> None:
    world = World("2020-v1", firmware=True)
    world.precopy.start()
    wire = world.wire
    wire.incoming = None
    step = world.precopy.step
    while step().page is None:
        pass
    data = bytearray(wire.data)
    data[-5] ^= 1
    with pytest.raises(Exception, match="RECEIVE_UPDATE_DATA: error -5") as caught:
        world.incoming.load(bytes(data))
    assert "1 pages of pc.ram overwritten; the guest must not start" in str(caught.value)
    assert world.incoming.state is IncomingState.FAILED
    with pytest.raises(InputError, match="make a new destination"):
        world.incoming.load(b"")
    with pytest.raises(InputError):
        world.incoming.finish()


def test_dirty_pages_go_again_and_clean_ones_do_not() -> None:
    world = World("2020-v1")
    world.precopy.start()
    assert world.precopy.run_pass() == 64
    assert world.precopy.run_pass() == 0
    world.source.put(5, 77, private=True)
    world.logs.mark(Gfn(5))
    assert world.precopy.run_pass() == 1
    assert world.target.content(5, private=True) == 77
    assert world.precopy.counters.passes == 3


def test_d17_the_last_pass_fetches_the_log_again_wherever_the_stop_came() -> None:
    world = World("2020-v1")
    world.precopy.start()
    world.precopy.run_pass()
    world.precopy.step()
    world.source.put(5, 77, private=True)
    world.logs.mark(Gfn(5))
    world.precopy.stop()
    world.precopy.complete()
    assert world.target.content(5, private=True) == 77


def test_the_steps_of_a_pass_are_those_of_the_order() -> None:
    for letters in ("1", "2", "3", "4", "5", "6"):
        world = World("2020-v1", machine=small_machine(1), order=ORDERS[letters])
        world.precopy.start()
        order = ORDERS[letters]
        kinds = tuple(world.precopy.step().kind for _ in (*order, order[0]))
        assert kinds == (*order, order[0])


def test_an_order_needs_its_log() -> None:
    world = World("2020-v1")
    with pytest.raises(InputError, match="manual-protect"):
        Precopy(world.status, world.logs, world.source, world.sev, world.wire, order=ORDERS["3"])


def test_d32_a_lazy_clear_takes_the_chunk_of_the_page() -> None:
    machine = small_machine(256)
    world = World("2020-v1", machine=machine, order=ORDERS["lazy"])
    for page in (3, 70, 200):
        world.logs.mark(Gfn(page))
    world.precopy.start()
    world.precopy.step()
    world.precopy.step()

    def left() -> list[int]:
        return [int(page) for page in world.logs.logs[0].get().search(1)]

    assert left() == [3, 70, 200]
    world.precopy.step()
    assert left() == [70, 200]
    for _ in range(64):
        world.precopy.step()
    assert left() == [200]
    world.logs.mark(Gfn(200))
    world.precopy.run_pass()
    assert left() == []


def test_phases_are_held_to() -> None:
    world = World("2020-v1")
    for action in (world.precopy.step, world.precopy.stop, world.precopy.complete):
        with pytest.raises(InputError, match="migration is none"):
            action()
    world.precopy.start()
    with pytest.raises(InputError, match="migration is active: this needs it device"):
        world.precopy.complete()


def test_d28_blockers_count_only_at_the_start() -> None:
    world = World("2021-v4")
    world.blockers.add("no")
    with pytest.raises(MigrationBlocked, match="no"):
        world.precopy.start()
    assert world.precopy.phase is Phase.NONE
    world.blockers.remove("no")
    world.precopy.start()
    assert world.blockers.add("too late") == -16
    world.precopy.run_pass()
    world.precopy.cancel()
    assert world.blockers.add("now") == 0


def test_d16_a_failure_finishes_as_posted() -> None:
    """The firmware is SENT for ever, QEMU believes in running; the next attempt cannot start."""
    world = World("2020-v1", ["dangling-header"], firmware=True)
    world.precopy.start()
    world.precopy.run_pass()
    world.precopy.fail("connection lost")
    assert world.precopy.phase is Phase.FAILED
    assert world.source_machine.firmware_state() == "SENT"
    again = world.attempt()
    world.wire.incoming = None
    again.start()
    again.run_pass()
    assert again.phase is Phase.FAILED
    assert "SEND_START: error -5" in str(again.failure)


def test_d16_repaired_a_failure_cancels_and_a_second_attempt_works() -> None:
    world = World("2020-v1", firmware=True)
    world.precopy.start()
    world.precopy.run_pass()
    world.precopy.fail("connection lost")
    assert world.source_machine.firmware_state() == "RUNNING"
    again = world.attempt()
    world.wire.incoming = None
    again.start()
    again.run_pass()
    assert again.phase is Phase.ACTIVE
    assert not world.sev.findings


def test_d16_the_freed_header_is_used_by_the_next_attempt() -> None:
    world = World("2020-v1", ["finish-on-failure"])
    world.precopy.start()
    world.precopy.run_pass()
    world.precopy.fail("connection lost")
    assert not world.sev.findings
    again = world.attempt()
    world.wire.incoming = None
    again.start()
    again.step()
    again.step()
    again.step()
    assert [finding.kind for finding in world.sev.findings] == [FindingKind.USE_AFTER_FREE]


@pytest.mark.parametrize("name", SETS)
def test_cancel_leaves_the_source_running(name: str) -> None:
    world = World(name, [], firmware=True)
    world.precopy.start()
    world.precopy.run_pass()
    world.precopy.cancel()
    assert world.precopy.phase is Phase.CANCELLED
    assert world.source_machine.firmware_state() == "RUNNING"
    assert not world.incoming.can_start


def test_a_failure_before_the_first_private_page_needs_no_firmware() -> None:
    """SEND_START is lazy (D16)."""
    world = World("2021-v4")
    world.record.private[:] = False
    world.precopy.start()
    world.precopy.run_pass()
    world.precopy.cancel()
    assert world.source.commands == []


@pytest.mark.parametrize("limit", range(0, 70, 6))
def test_a_broken_channel_fails_both_sides(limit: int) -> None:
    world = World("2020-v1", limit=limit)
    world.precopy.start()
    while world.precopy.phase is Phase.ACTIVE:
        world.precopy.step()
    assert world.precopy.phase is Phase.FAILED
    assert "connection lost" in str(world.precopy.failure)
    error = world.incoming.abort("connection lost")
    assert "must not start" in str(error)
    assert world.incoming.state is IncomingState.FAILED
    assert not world.blockers.is_running


def test_d12_an_error_of_the_last_loop_is_overwritten() -> None:
    """As posted the migration completes without the pages; repaired it fails."""
    for repaired, phase in (([], Phase.COMPLETED), (["return-overwritten"], Phase.FAILED)):
        world = World("2020-v1", repaired)
        world.precopy.start()
        world.precopy.run_pass()
        world.source.put(7, 1, private=True)
        for page in (7, 8):
            world.logs.mark(Gfn(page))
        world.source.fails["SEND_UPDATE_DATA"] = 0
        world.precopy.stop()
        world.precopy.complete()
        assert world.precopy.phase is phase
        if phase is Phase.COMPLETED:
            assert "SEND_UPDATE_DATA" in str(world.precopy.swallowed)
            world.incoming.finish()
            assert world.target.content(7, private=True) == 0


def pc(ram: int = 64, hole: int = 32) -> MemoryMap:
    """`ram` pages, of which those from `hole` on appear 128 pages higher."""
    return pc_machine(PcLayout(ram * PAGE, hole * PAGE, (hole + 128) * PAGE))


def test_d23_the_gfn_above_the_hole_is_too_low_by_the_hole() -> None:
    for repaired, right in ((["list-load"], False), (REPAIRED["2021-v4"], True)):
        world = World("2021-v4", repaired, pc())
        world.record.private[170:172] = False
        for page in (42, 43):
            world.source.put(page, page, private=False)
        world.run()
        got = [world.target.content(page, private=False) for page in (42, 43)]
        assert (got == [42, 43]) is right


def test_f7_a_page_without_gpa_stops_a_repaired_migration() -> None:
    """F16b: nobody knows its status; as posted it goes by another page's."""
    machine = pc()
    machine.hot_plug("dimm", 4 * PAGE, 300 * PAGE)
    machine.hot_unplug("dimm", keeps_block=True)
    world = World("2021-v4", machine=machine)
    world.precopy.start()
    world.precopy.run_pass()
    assert world.precopy.phase is Phase.FAILED
    assert "RAM block 'dimm' is mapped nowhere" in str(world.precopy.failure)
    posted = World("2021-v4", [], machine)
    posted.run()


def test_d8_rom_and_d13_flash_and_m76_device_ram() -> None:
    machine = MemoryMap()
    kinds = (
        ("pc.ram", BlockKind.RAM),
        ("pc.bios", BlockKind.ROM),
        ("flash0", BlockKind.FLASH_CODE),
        ("flash1", BlockKind.FLASH_VARS),
        ("vga.vram", BlockKind.DEVICE),
    )
    for index, (name, kind) in enumerate(kinds):
        block = machine.add_block(name, 64 * PAGE, kind, index * 64 * PAGE)
        machine.map(name, index * 64 * PAGE)
        assert block.ram_addr == index * 64 * PAGE

    def private(name: str, repaired: list[str]) -> list[bool]:
        record = Record(320)
        record.private[128:256] = False
        status = page_status(machine, name, repaired, bitmap=record, regions=record)
        status.sync()
        return [status.is_private(block, 0, live=False) for block in machine.blocks.values()]

    spare = ["zero-word", "word-test"]
    assert private("2019-v2", spare) == [True, False, False, False, True]
    assert private("2020-v1", ["zero-word"]) == [True, False, True, False, True]
    assert private("2021-v4", []) == [True, False, True, False, True]
    for name in SETS:
        assert private(name, REPAIRED[name])[4] is False


def test_m76_the_vga_lines_are_garbage_at_the_destination() -> None:
    machine = pc_machine(PcLayout(64 * PAGE, vga=8 * PAGE, vga_base=80 * PAGE))
    for repaired, right in (([], False), (REPAIRED["2019-v3"], True)):
        world = World("2019-v3", repaired, machine)
        world.source.put(64, 5, private=False)
        world.run()
        assert (world.target.content(64, private=False) == 5) is right


def bitmap_status(name: str, repaired: list[str], machine: MemoryMap, record: Record):
    status = page_status(machine, name, repaired, bitmap=record)
    assert isinstance(status, BitmapStatus)
    return status


@pytest.mark.parametrize("name", ["2019-v2", "2020-v1"])
def test_the_map_of_a_block_is_that_of_its_pages(name: str) -> None:
    machine = pc_machine(PcLayout(256 * PAGE, vga=8 * PAGE, vga_base=300 * PAGE))
    record = Record(512)
    record.private[10:20] = False
    record.private[64:128] = False
    status = bitmap_status(name, [], machine, record)
    status.sync()
    for block in machine.blocks.values():
        each = PageStatus.copied_map(status, block)
        assert status.copied_map(block) == each
        assert len(each) == block.pages


def test_d2_two_slots_in_a_section() -> None:
    """Both slots' bits go to the section's start, and the buffer of 128 is read as 256."""
    machine = pc_machine(PcLayout(256 * PAGE, max_slot_pages=128))
    record = Record(256)
    record.private[10:20] = False
    posted = bitmap_status("2019-v2", ["zero-word"], machine, record)
    posted.sync()
    assert posted.encrypted[10:20].all()
    repaired = bitmap_status("2019-v2", REPAIRED["2019-v2"], machine, record)
    repaired.sync()
    assert repaired.encrypted == record.private


def test_d1_the_maps_start_as_opposites() -> None:
    machine = pc()
    machine.add_block("spare", PAGE)
    record = Record(256)
    posted = bitmap_status("2019-v2", [], machine, record)
    spare = machine.blocks["spare"]
    assert posted.is_private(spare, 0, live=False)
    posted.sync()
    assert not posted.is_private(spare, 0, live=False)
    repaired = bitmap_status("2019-v2", ["defaults"], machine, record)
    repaired.sync()
    assert repaired.is_private(spare, 0, live=False)


def test_d7_a_resize_makes_pages_shared_until_the_next_sync() -> None:
    machine = pc()
    record = Record(256)
    for repaired, right in (([], False), (["clear-status"], True)):
        status = bitmap_status("2019-v2", repaired, machine, record)
        status.sync()
        block = machine.blocks["pc.ram"]
        status.block_resized(block)
        assert status.is_private(block, 0, live=False) is right
        status.sync()
        assert status.is_private(block, 0, live=False)


def test_c6_pages_whose_status_changed_go_again() -> None:
    """Net changes between the last sync and the stop; nothing else is sent again."""
    for resends in (False, True):
        world = World("2020-v1", resends_changed=resends)
        world.precopy.start()
        world.precopy.run_pass()
        world.source.put(3, 9, private=False)
        world.record.private[3] = False
        world.precopy.stop()
        world.precopy.complete()
        world.incoming.finish()
        assert (world.target.content(3, private=False) == 9) is resends
        assert world.precopy.counters.encrypted == 64


def test_the_live_status_of_a_bitmap_set() -> None:
    world = World("2020-v1", order=ORDERS["5"])
    world.record.private[4] = False
    world.source.put(4, 8, private=False)
    world.run()
    assert world.target.content(4, private=False) == 8


def test_addresses_are_ram_addr_and_not_gpa() -> None:
    world = World("2020-v1", machine=pc())
    world.source.put(40, 6, private=True)
    world.logs.mark(Gfn(168))
    world.run()
    assert world.machine.ram_addr_of(168 * PAGE) == RamAddr(40 * PAGE)
    assert world.target.content(40, private=True) == 6
