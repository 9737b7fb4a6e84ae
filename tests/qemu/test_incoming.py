# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's states, the status it takes, blockers, forecasts."""

from __future__ import annotations

import random
import struct

import pytest
from bitarray import bitarray
from qemu_world import PAGE, Record, Token, small_machine

from guestemu.abi.addresses import Gfn
from guestemu.abi.errno import EBUSY, ENOTTY
from guestemu.abi.errors import InputError
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.qemu.blockers import (
    GUEST_BLOCKER,
    SEV_BLOCKER,
    GuestReadyBlocker,
    MigrationBlocked,
    MigrationBlockers,
)
from guestemu.host.qemu.convergence import Throughput, forecast, threshold_pages
from guestemu.host.qemu.host_status import HostBitmap, HostRegions
from guestemu.host.qemu.incoming import Incoming, IncomingFailed, IncomingState
from guestemu.host.qemu.interfaces import Region, SendStart, SevPacket
from guestemu.host.qemu.memory_map import MemoryMap
from guestemu.host.qemu.outgoing import page_status
from guestemu.host.qemu.patch_sets import PATCH_SETS, defects_left
from guestemu.host.qemu.stream_format import BitmapRange
from guestemu.host.qemu.stream_writer import StreamWriter
from guestemu.host.qemu.world import QemuWorld
from guestemu.host.registry import load_host


class Sink(bytearray):
    def write(self, data: bytes) -> None:
        self.extend(data)


def all_switches(name: str) -> list[str]:
    return [defect.value for defect in PATCH_SETS[name].defects]


class Target:
    """A destination of 64 pages and a writer of its streams."""

    def __init__(
        self, name: str, repaired: list[str] | None = None, regions: tuple[Region, ...] = ()
    ) -> None:
        version = PATCH_SETS[name]
        self.defects = defects_left(version, all_switches(name) if repaired is None else repaired)
        self.token = Token("d", 64)
        self.record = Record(64)
        machine = small_machine(64)
        self.incoming = Incoming(
            machine, version, self.defects, self.token, self.token, self.record, regions
        )
        self.sink = Sink()
        self.writer = StreamWriter(self.sink, version.wire)

    def begin(self) -> StreamWriter:
        self.writer.block_list([("pc.ram", 64 * PAGE)])
        self.writer.end_of_section()
        return self.writer

    def load(self) -> None:
        data = bytes(self.sink)
        self.sink.clear()
        self.incoming.load(data)


def test_states_of_a_whole_migration() -> None:
    target = Target("2020-v1")
    states = [target.incoming.state]
    writer = target.begin()
    target.load()
    states.append(target.incoming.state)
    writer.encrypted_page("pc.ram", 0, SevPacket(b"h", b"3"), SendStart(0, b"p", b"s"))
    target.load()
    states.append(target.incoming.state)
    writer.status_bitmap([BitmapRange(0, 64, b"\x01" + bytes(7))], "pc.ram")
    writer.end_of_section()
    target.load()
    target.incoming.finish()
    states.append(target.incoming.state)
    assert [state.value for state in states] == ["waiting", "setup", "active", "completed"]
    assert target.record.private.count() == 1
    assert target.token.commands == ["RECEIVE_START", "RECEIVE_UPDATE_DATA", "RECEIVE_FINISH"]
    assert "1 pages of pc.ram overwritten; the guest may start" in target.incoming.report()


def test_a_stream_without_pages_or_status_does_not_start_a_guest() -> None:
    target = Target("2020-v1")
    target.begin()
    target.load()
    with pytest.raises(IncomingFailed, match="before the first page"):
        target.incoming.finish()
    for repaired, starts in ((None, False), ([], True)):
        target = Target("2020-v1", repaired)
        target.begin().zero_page("pc.ram", 0)
        target.load()
        if starts:
            target.incoming.finish()
        else:
            with pytest.raises(IncomingFailed, match="without the page status"):
                target.incoming.finish()
        assert target.incoming.can_start is starts


def test_a_page_before_the_block_list_is_refused() -> None:
    target = Target("2020-v1")
    target.writer.zero_page("pc.ram", 0)
    with pytest.raises(IncomingFailed, match="before the block list") as caught:
        target.load()
    assert "no page overwritten" in str(caught.value)


def test_a_cut_stream_says_how_much_of_ram_was_overwritten() -> None:
    """Every cut in the middle: FAILED, never COMPLETED, and the number of pages is right."""
    target = Target("2020-v1")
    writer = target.begin()
    for page in range(3):
        writer.plain_page("pc.ram", page * PAGE, b"5".ljust(PAGE))
    data = bytes(target.sink)
    for cut in random.Random(1).sample(range(1, len(data)), 200):
        target = Target("2020-v1")
        message = ""
        try:
            target.incoming.load(data[:cut])
        except IncomingFailed as error:
            message = str(error)
        assert not target.incoming.can_start
        if message:
            done = sum(target.token.pages[page] == 5 for page in range(3))
            assert (f"{done} pages" if done else "no page") in message
            assert target.incoming.state is IncomingState.FAILED


def test_a_refused_receive_start_fails_with_ram_untouched() -> None:
    target = Target("2021-v4")
    target.token.fails["RECEIVE_START"] = 0
    page = (0, SevPacket(b"h", b"3"), SendStart(0, b"p", b"s"))
    target.begin().encrypted_page("pc.ram", *page)
    with pytest.raises(IncomingFailed, match="no page overwritten"):
        target.load()


def test_a_failed_receive_finish_is_a_failure() -> None:
    target = Target("2021-v4", [])
    target.token.fails["RECEIVE_FINISH"] = 0
    target.begin().encrypted_page("pc.ram", 0, SevPacket(b"h", b"3"), SendStart(0, b"p", b"s"))
    target.load()
    with pytest.raises(IncomingFailed, match="RECEIVE_FINISH"):
        target.incoming.finish()
    assert not target.incoming.can_start


def test_f17_a_helper_page_is_refused() -> None:
    target = Target("2021-v4")
    target.begin().helper_page("pc.ram", 0, SevPacket(b"h", b"d"))
    with pytest.raises(IncomingFailed, match="migration helper"):
        target.load()


def test_d22_the_incoming_list_is_appended_as_posted() -> None:
    for repaired, regions in (([], [(1, 2), (5, 6)]), (None, [(5, 6)])):
        target = Target("2021-v4", repaired, ((1, 2),))
        writer = target.begin()
        writer.zero_page("pc.ram", 0)
        writer.shared_regions([(5, 6)], "pc.ram")
        target.load()
        assert target.record.list == regions


def test_m75_the_posted_destination_suffers_and_the_repaired_refuses() -> None:
    """npages 64 times what the bitmap holds: KVM reads beyond QEMU's buffer."""
    hostile = struct.pack(">QQQQ", 0x400, 0, 4096, 8) + bytes(8)
    posted = Target("2019-v2", [])
    posted.begin().zero_page("pc.ram", 0)
    posted.load()
    with pytest.raises(IncomingFailed, match="bitmap too small"):
        posted.incoming.load(hostile)
    assert [finding.kind for finding in posted.incoming.findings] == [FindingKind.OUT_OF_BOUNDS]
    repaired = Target("2019-v2")
    repaired.begin().zero_page("pc.ram", 0)
    repaired.load()
    with pytest.raises(IncomingFailed, match="bitmap npages"):
        repaired.incoming.load(hostile)
    assert not repaired.incoming.findings


@pytest.mark.parametrize(
    ("name", "repaired", "result", "shared"),
    [
        ("2019-v3", [], -ENOTTY, [(3, 4)]),
        ("2020-v1", [], 0, []),
        ("2021-v4", [], 0, [(3, 4)]),
        ("2021-v4", ["list-reset"], 0, []),
    ],
)
def test_d15_and_d22_system_reset(
    name: str, repaired: list[str], result: int, shared: list[Region]
) -> None:
    version = PATCH_SETS[name]
    world = QemuWorld(version, defects_left(version, repaired))
    world.set_status(0, 3, 1, private=False)
    assert (world.reset(), world.regions) == (result, shared)


def test_d24_ready_removes_the_blocker_and_zero_does_not_bring_it_back() -> None:
    blockers = MigrationBlockers()
    posted = GuestReadyBlocker(blockers)
    with pytest.raises(MigrationBlocked, match="not enabled"):
        blockers.check()
    posted.write(3)
    assert blockers.reasons == (GUEST_BLOCKER,)
    posted.write(1)
    blockers.check()
    posted.write(0)
    blockers.check()


def test_d24_repaired_and_d28_too_late() -> None:
    blockers = MigrationBlockers()
    ready = GuestReadyBlocker(blockers, repaired=True)
    ready.write(1)
    assert ready.write(0) == 0
    assert blockers.reasons == (GUEST_BLOCKER,)
    ready.write(1)
    blockers.is_running = True
    assert ready.write(0) == -EBUSY
    assert ready.has_failed_to_block
    assert blockers.reasons == ()


def test_d26_nothing_removes_upstreams_blocker() -> None:
    blockers = MigrationBlockers()
    blockers.add(SEV_BLOCKER)
    GuestReadyBlocker(blockers).write(1)
    with pytest.raises(MigrationBlocked, match="SEV: Migration is not implemented"):
        blockers.check()


def test_d14_the_threshold_is_about_100_pages() -> None:
    assert [threshold_pages(rate) for rate in (350, 400, 450)] == [105, 120, 135]
    assert threshold_pages(400, 1000) == 400
    with pytest.raises(InputError):
        threshold_pages(0)


def test_d14_a_guest_that_dirties_as_fast_never_converges() -> None:
    assert not forecast(65536, 400, 400).converges
    hopeless = forecast(65536, 500, 400, 1000)
    assert (hopeless.converges, hopeless.passes, hopeless.pages_left) == (False, 1, 65536)
    fine = forecast(65536, 100, 400)
    assert (fine.converges, fine.passes, fine.pages_left) == (True, 5, 64)
    assert fine.blackout_ms == 160
    assert forecast(65536, 300, 400).passes == 22


def test_a_higher_limit_saves_passes() -> None:
    assert forecast(65536, 300, 400, 1000).passes < forecast(65536, 300, 400, 300).passes


def test_throughput_adds_both_ways() -> None:
    assert Throughput(400, 4096 * 100).seconds(400, 50) == 1.5


def test_d34_a_stale_entry_of_fresh_memory_stays_in_a_list() -> None:
    """A list by gfn keeps the old module's shared page (D34)."""
    machine = MemoryMap()
    record = Record(64)
    machine.hot_plug("dimm", 8 * PAGE, 0)
    record.private[3] = False
    machine.hot_unplug("dimm")
    fresh = machine.hot_plug("dimm", 8 * PAGE, 0)
    listed = page_status(machine, "2021-v4", all_switches("2021-v4"), regions=record)
    assert not listed.is_private(fresh, 3, live=True)


def test_a_hosts_record_as_bitmap_and_as_list() -> None:
    host = load_host("qemu-v4")
    host.reset(256)
    host.qemu.regions[:] = [(1, 4), (2, 6)]
    host.qemu._version += 1
    assert list(HostRegions(host).regions) == [(1, 4), (2, 6)]
    other = load_host("map-gpa-range")
    other.reset(256)
    other.private_map()[5:9] = False
    assert list(HostRegions(other).regions) == [(5, 9)]
    bits = bitarray(endian="little")
    bits.frombytes(HostBitmap(other).get_page_enc_bitmap(Gfn(4), 300))
    assert len(bits) == 320
    assert list(bits.search(0)) == [1, 2, 3, 4]


def test_a_set_needs_its_source() -> None:
    with pytest.raises(InputError, match="give `regions`"):
        page_status(small_machine(1), "2021-v4", bitmap=Record(1))
    with pytest.raises(InputError, match="give `bitmap`"):
        page_status(small_machine(1), "2020-v1", regions=Record(1))
