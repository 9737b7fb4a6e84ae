# SPDX-License-Identifier: GPL-2.0-or-later
"""A running guest under the host qemu-v4, moved by the 2021 set while it converts and writes."""

from __future__ import annotations

import msgspec
import pytest
from qemu_world import PAGE, RAM_AT, Record, SevMachine, Wire, small_machine

from guestemu.abi.addresses import Gfn, Gpa
from guestemu.abi.regions import Region
from guestemu.host.qemu.dirty_log import KvmDirtyLogs
from guestemu.host.qemu.host_status import HostBitmap, HostRegions
from guestemu.host.qemu.incoming import Incoming
from guestemu.host.qemu.outgoing import page_status
from guestemu.host.qemu.patch_sets import PATCH_SETS
from guestemu.host.qemu.precopy import Phase, Precopy
from guestemu.host.qemu.sev_send import OutgoingSev
from guestemu.migration.dirty_log import DirtyLog
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed


def op(kind: OpKind, *arguments: int, page: int = 0) -> Op:
    return canonical_op(msgspec.structs.replace(Op(kind, arguments, Region.D, page)))


class Moving:
    """The testbed's guest in the memory of a host with firmware, and a destination for it."""

    def __init__(self, name: str) -> None:
        self.testbed: Testbed = build_testbed(Header(host="qemu-v4", memory=32))
        self.testbed.reset()
        self.ram = self.testbed.guest.machine.ram
        frames = self.ram.frames
        self.source = SevMachine("source", frames, "target")
        self.target = SevMachine("target", frames)
        self.source.launch()
        key = self.source.platform.memory_key(self.source.vm.handle)
        self.source.platform.memory.attach(RAM_AT, self.ram, key)
        machine = small_machine(frames)
        host = self.testbed.host
        repaired = [defect.value for defect in PATCH_SETS[name].defects]
        status = page_status(
            machine, name, repaired, bitmap=HostBitmap(host), regions=HostRegions(host)
        )
        self.logs = KvmDirtyLogs(machine)
        self.stores = DirtyLog(self.ram, range(frames))
        self.stores.clear(range(frames))
        self.record = Record(frames)
        there = self.target.transport
        self.incoming = Incoming(machine, status.version, status.defects, there, there, self.record)
        here = self.source.transport
        sev = OutgoingSev(here, status.defects)
        self.precopy = Precopy(status, self.logs, here, sev, Wire(self.incoming))

    def guest(self, *ops: Op) -> None:
        """Runs guest operations and marks what they wrote."""
        for index, one in enumerate(ops):
            self.testbed.step(index, one, None, [])
        written = self.stores.get()
        self.stores.clear(written)
        for gfn in written:
            self.logs.mark(Gfn(gfn))


@pytest.mark.parametrize("name", [pytest.param("2020-v1", marks=pytest.mark.soak), "2021-v4"])
def test_a_guest_that_converts_and_writes_arrives_whole(name: str) -> None:
    moving = Moving(name)
    moving.guest(
        op(OpKind.INIT_PLATFORM, 0),
        op(OpKind.SET_MEMORY_DECRYPTED, 4, 0, page=3),
        op(OpKind.WRITE, 0x41, 0, 6000, page=3),
    )
    precopy = moving.precopy
    precopy.start()
    while precopy.pending_pages > moving.ram.frames // 2 or not precopy.counters.encrypted:
        precopy.step()
    moving.guest(
        op(OpKind.SET_MEMORY_ENCRYPTED, 2, 0, page=3),
        op(OpKind.WRITE, 0x42, 0, 8000, page=3),
        op(OpKind.SET_MEMORY_DECRYPTED, 1, 0, page=20),
        op(OpKind.WRITE, 0x43, 0, 4000, page=20),
    )
    precopy.run_pass()
    precopy.stop()
    precopy.complete()
    assert precopy.phase is Phase.COMPLETED, precopy.failure
    moving.incoming.finish()
    private = moving.testbed.host.private_map()
    assert moving.record.private == private
    assert private.count(0) >= 3
    for gfn in range(moving.ram.low, moving.ram.frames):
        if private[gfn]:
            want = moving.ram.read(Gpa(gfn * PAGE), PAGE)
            assert moving.target.read_private(gfn) == want, gfn
        else:
            assert moving.target.read_shared(gfn) == moving.ram.dram(Gfn(gfn)), gfn
    assert moving.source.firmware_state() == "SENT"
    moving.testbed.close()
