# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulated devices without a kernel: what a driver would see of them."""

from __future__ import annotations

import struct

import pytest

from guestemu.abi.addresses import Gpa
from guestemu.abi.errors import InputError
from guestemu.machine.devices import device_names, find_device
from guestemu.machine.devices.disk import Disk
from guestemu.machine.devices.mmio import HOLE_START, MmioSpace
from guestemu.machine.devices.nvme import NvmeController
from guestemu.machine.devices.pci import PciBus
from guestemu.machine.devices.pic import InterruptControllers
from guestemu.machine.devices.pit import IntervalTimer
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.devices.virtio_blk import VirtioBlk
from guestemu.machine.machine import Machine, MachineConfig

ASQ, ACQ, DATA, LIST = 0x20000, 0x21000, 0x22000, 0x23000
OUTSIDE = 1 << 39 | DATA


class Slot:
    """A device in a machine of its own, and what it did to memory."""

    def __init__(self, name):
        self.machine = Machine(MachineConfig(frames=64, defer_memory_hooks=True))
        self.accesses = []
        self.pic = InterruptControllers(lambda: None)
        dma = DmaPort(self.machine.ram, name, self.accesses.append)
        self.device = find_device(name)(HOLE_START, self.pic.line(5), dma)

    def put(self, gpa, data):
        self.machine.ram.write(Gpa(gpa), data, private=False)

    def get(self, gpa, size):
        return self.machine.ram.read(Gpa(gpa), size, private=False)


def command(opcode, prp1, prp2=0, *words):
    head = struct.pack("<BBHIQQQQ", opcode, 0, 7, 1, 0, 0, prp1, prp2)
    return head + struct.pack("<6I", *words, *[0] * (6 - len(words)))


@pytest.fixture
def nvme():
    slot = Slot("nvme")
    slot.device.mmio_write(0x24, 4, 15 << 16 | 15)
    slot.device.mmio_write(0x28, 8, ASQ)
    slot.device.mmio_write(0x30, 4, ACQ)
    slot.device.mmio_write(0x14, 4, 1)
    slot.tail = 0

    def submit(entry):
        slot.put(ASQ + 64 * slot.tail, entry)
        slot.tail += 1
        slot.device.mmio_write(0x1000, 4, slot.tail)
        done = slot.get(ACQ + 16 * (slot.tail - 1), 16)
        return struct.unpack_from("<H", done, 14)[0] >> 1

    slot.submit = submit
    return slot


def test_nvme_completes_and_holds_its_line_until_the_driver_has_seen_it(nvme):
    assert nvme.device.mmio_read(0x1C, 4) == 1
    assert nvme.submit(command(6, DATA, 0, 1)) == 0
    assert nvme.get(DATA + 24, 13) == b"guestemu NVMe"
    assert nvme.pic.state.chips[0].level == 1 << 5
    nvme.device.mmio_write(0x1004, 4, 1)
    assert nvme.pic.state.chips[0].level == 0


def test_nvme_follows_prp_lists(nvme):
    nvme.submit(command(5, 0x28000, 0, 15 << 16 | 1, 1))
    nvme.submit(command(1, 0x29000, 0, 15 << 16 | 1, 1 << 16 | 1))
    nvme.put(LIST, struct.pack("<2Q", 0x24000, 0x26000))
    nvme.put(0x29000, command(2, DATA, LIST, 0, 0, 23))  # 12 KiB from block 0
    nvme.device.mmio_write(0x1008, 4, 1)
    disk = nvme.device.disk
    assert nvme.get(DATA, 4096) == disk.read(0, 8)
    assert nvme.get(0x24000, 4096) == disk.read(8, 8)
    assert nvme.get(0x26000, 4096) == disk.read(16, 8)
    assert {access.part for access in nvme.accesses if access.is_payload} == {"data"}


@pytest.mark.parametrize("opcode", [0x55, 0x0E])
def test_nvme_refuses_what_it_does_not_know(nvme, opcode):
    assert nvme.submit(command(opcode, DATA)) == 1


def test_nvme_reads_beyond_its_end_are_an_error(nvme):
    nvme.submit(command(5, 0x28000, 0, 15 << 16 | 1, 1))
    nvme.submit(command(1, 0x29000, 0, 15 << 16 | 1, 1 << 16 | 1))
    nvme.put(0x29000, command(2, DATA, 0, 4096, 0, 0))
    nvme.device.mmio_write(0x1008, 4, 1)
    assert struct.unpack("<H", nvme.get(0x28000 + 14, 2))[0] >> 1 == 0x80
    assert not any(access.gpa == DATA for access in nvme.accesses)


def test_an_address_with_the_c_bit_reaches_no_memory(nvme):
    nvme.submit(command(6, OUTSIDE, 0, 1))
    assert nvme.get(DATA, 4096) == bytes(4096)
    assert nvme.accesses[-2].gpa == OUTSIDE


def test_a_rollback_forgets_queues_and_writes(nvme):
    nvme.device.checkpoint()
    before = nvme.device.dump()
    nvme.device.disk.write(3, b"x" * 512)
    nvme.device.mmio_write(0x14, 4, 0)
    nvme.device.rollback()
    assert nvme.device.dump() == before
    assert nvme.device.mmio_read(0x1C, 4) == 1


def test_virtio_blk_reads_by_a_descriptor_chain_and_offers_access_platform():
    slot = Slot("virtio-blk")
    device = slot.device
    device.mmio_write(0x00, 4, 1)
    assert device.mmio_read(0x04, 4) & 3 == 3
    device.mmio_write(0x16, 2, 0)
    for at, value in ((0x20, 0x20000), (0x28, 0x21000), (0x30, 0x22000)):
        device.mmio_write(at, 4, value)
    device.mmio_write(0x1C, 2, 1)
    slot.put(0x24000, struct.pack("<IIQ", 0, 0, 5))
    chain = ((0x24000, 16, 1, 1), (0x25000, 512, 3, 2), (0x26000, 1, 2, 0))
    slot.put(0x20000, b"".join(struct.pack("<QIHH", *one) for one in chain))
    slot.put(0x26000, b"\xff")
    slot.put(0x21000, struct.pack("<HHH", 0, 1, 0))
    device.mmio_write(0x1000, 2, 0)
    assert slot.get(0x25000, 512) == device.disk.read(5, 1)
    assert slot.get(0x26000, 1) == b"\0"
    assert struct.unpack("<HHII", slot.get(0x22000, 12))[1:] == (1, 0, 513)
    assert device.mmio_read(0x2000, 1) == 1
    assert slot.pic.state.chips[0].level == 0


def test_virtio_cuts_a_chain_that_loops():
    slot = Slot("virtio-rng")
    for at, value in ((0x20, 0x20000), (0x28, 0x21000), (0x30, 0x22000)):
        slot.device.mmio_write(at, 4, value)
    slot.device.mmio_write(0x1C, 2, 1)
    slot.put(0x20000, struct.pack("<QIHH", 0x24000, 1, 3, 0))
    slot.put(0x21000, struct.pack("<HHH", 0, 1, 0))
    slot.device.mmio_write(0x1000, 2, 0)
    assert sum(access.is_payload for access in slot.accesses) == 64


def test_interrupt_controllers_keep_priorities_and_levels():
    pic = InterruptControllers(lambda: None)
    for port, words in ((0x20, (0x30, 4, 1)), (0xA0, (0x38, 2, 1))):
        pic.write(port, 0x11)
        for word in words:
            pic.write(port + 1, word)
    pic.write(0x21, 0)
    pic.write(0xA1, 0)
    pic.set_line(11, True)
    pic.pulse(0)
    assert pic.pending() == 0
    assert pic.acknowledge(0) == 0x30
    assert pic.pending() is None
    pic.write(0x20, 0x60)
    assert pic.pending() == 11
    assert pic.acknowledge(11) == 0x3B
    pic.write(0xA0, 0x63)
    pic.write(0x20, 0x62)
    assert pic.pending() == 11  # the line is still high
    pic.set_line(11, False)
    assert pic.pending() is None


def test_the_timer_fires_at_its_deadline_and_catches_up():
    now = [0]
    pit = IntervalTimer(lambda: now[0])
    pit.write(0x43, 0x34)
    pit.write(0x40, 0xA9)
    pit.write(0x40, 0x04)  # 1193 counts: 999847 ns
    assert pit.deadline == 999847
    now[0] = 3_500_000
    assert pit.take_expired()
    assert not pit.take_expired()
    assert pit.deadline == 4 * 999847
    pit.write(0x43, 0x38)
    assert pit.deadline is None


def test_bars_are_sized_and_an_empty_slot_reads_ones():
    slot = Slot("nvme")
    bus = PciBus({1: slot.device})
    bus.write(0xCF8, 4, 1 << 31 | 1 << 11 | 0x10)
    assert bus.read(0xCFC, 4) == HOLE_START
    bus.write(0xCFC, 4, 0xFFFFFFFF)
    assert bus.read(0xCFC, 4) == 0xFFFFC000
    bus.write(0xCF8, 4, 1 << 31 | 2 << 11)
    assert bus.read(0xCFC, 4) == 0xFFFFFFFF
    slot.device.unplug()
    bus.write(0xCF8, 4, 1 << 31 | 1 << 11)
    assert bus.read(0xCFC, 2) == 0xFFFF


def test_open_bus_reads_ones():
    slot = Slot("virtio-blk")
    space = MmioSpace([slot.device])
    assert space.read(HOLE_START + 0x3000, 8) == slot.device.disk.sectors
    assert space.read(HOLE_START + 0x4000, 4) == 0xFFFFFFFF
    slot.device.unplug()
    assert space.read(HOLE_START + 0x3000, 8) == (1 << 64) - 1


def test_a_disk_knows_what_it_holds():
    disk = Disk("label")
    assert disk.has(disk.read(0, 2)[:700])
    assert not disk.has(b"")
    disk.write(1, b"\1" * 512)
    assert not disk.has(Disk("label").read(0, 2))


def test_unknown_devices_are_named():
    with pytest.raises(InputError, match="did you mean nvme"):
        find_device("nvm")
    assert {NvmeController, VirtioBlk} <= {find_device(name) for name in device_names()}


def frame_of(payload, kind=b"\x88\xb5"):
    return bytes(12) + b"\xff" * 6 + b"\x52\x54\0gem" + kind + payload


def test_the_other_end_answers_a_frame_as_soon_as_there_is_a_buffer():
    slot = Slot("virtio-net")
    device = slot.device
    rings = {0: 0x10000, 1: 0x14000}
    for number, base in rings.items():
        for offset, size, value in (
            *((0x16, 2, number), (0x20, 4, base), (0x28, 4, base + 0x1000)),
            *((0x30, 4, base + 0x2000), (0x1C, 2, 1)),
        ):
            device.mmio_write(offset, size, value)
    sent = frame_of(bytes(range(50)))

    def offer(number, gpa, size, flags, index):
        base = rings[number]
        slot.put(base, struct.pack("<QIHH", gpa, size, flags, 0))
        slot.put(base + 0x1000 + 4 + 2 * (index - 1), b"\0\0")
        slot.put(base + 0x1002, index.to_bytes(2, "little"))
        device.mmio_write(0x1000 + 4 * number, 4, 0)

    slot.put(0x20000, frame_of(b"x" * 50, b"\x86\xdd"))
    offer(1, 0x20000, 76, 0, 1)
    assert device.state.pending == []
    slot.put(0x20000, sent)
    offer(1, 0x20000, len(sent), 0, 2)
    assert len(device.state.pending) == 1
    offer(0, 0x21000, 2048, 2, 1)
    answer = slot.get(0x21000 + 12, len(sent) - 12)
    assert answer[:6] == b"\x52\x54\0gem"
    assert answer[14:] == bytes(byte ^ 0xFF for byte in range(50))
    assert slot.get(rings[0] + 0x2000 + 4, 8) == struct.pack("<II", 0, len(sent))
    assert device.state.pending == []
    assert {access.is_payload for access in slot.accesses if access.part == "frame"} == {True}


SHARED, QUEUES = 0x10000, 0x11000
SENT, COPIED, SENT_DONE, BUFFERS, BUFFERS_DONE = (0x12000 + 0x1000 * at for at in range(5))
OWN = b"\x52\x54\0gem"


@pytest.fixture
def vmxnet3():
    """A device with rings of four descriptors, unmasked, and two buffers of 0x800 bytes."""
    slot = Slot("vmxnet3")
    slot.put(SHARED, struct.pack("<I", 3133079265))
    slot.put(SHARED + 40, struct.pack("<Q", QUEUES))
    slot.put(SHARED + 62, b"\1\1")  # queues
    slot.put(SHARED + 80, b"\1")  # the device masks its interrupt
    slot.put(QUEUES + 16, struct.pack("<3Q16x3I", SENT, COPIED, SENT_DONE, 4, 4, 4))
    slot.put(QUEUES + 272, struct.pack("<3Q16x3I", BUFFERS, 0, BUFFERS_DONE, 4, 0, 4))
    for index in range(2):
        entry = struct.pack("<QII", 0x20000 + 0x800 * index, 0x800 | 1 << 31, 0)
        slot.put(BUFFERS + 16 * index, entry)
    slot.device.mmio_write(0x1010, 4, SHARED)
    slot.device.mmio_write(0x1020, 4, 0xCAFE0000)
    assert slot.device.mmio_read(0x1020, 4) == 0
    slot.device.mmio_write(0, 4, 0)
    return slot


def test_vmxnet3_sends_what_two_descriptors_hold_and_stores_the_answer(vmxnet3):
    frame = b"\xff" * 6 + OWN + b"\x88\xb5" + bytes(range(200))
    vmxnet3.put(COPIED, frame[:128])
    vmxnet3.put(0x30000, frame[128:])
    vmxnet3.put(SENT, struct.pack("<QII", COPIED, 128 | 1 << 14, 0))
    rest = len(frame) - 128
    vmxnet3.put(SENT + 16, struct.pack("<QII", 0x30000, rest | 1 << 14, 3 << 12))
    vmxnet3.device.mmio_write(0x600, 4, 2)
    answer = vmxnet3.get(0x20000, len(frame))
    assert (answer[:6], answer[12:14]) == (OWN, b"\x88\xb5")
    assert answer[14:] == bytes(byte ^ 0xFF for byte in range(200))
    assert vmxnet3.get(SENT_DONE, 16) == struct.pack("<4I", 1, 0, 0, 1 << 31)
    words = (3 << 14, 0, len(frame), 1 << 31 | 3 << 24)
    assert vmxnet3.get(BUFFERS_DONE, 16) == struct.pack("<4I", *words)
    payload = [(one.gpa, one.is_write) for one in vmxnet3.accesses if one.is_payload]
    assert payload == [(0x30000, False), (0x20000, True)]


def test_vmxnet3_masks_its_interrupt_when_the_driver_sees_it(vmxnet3):
    pic, device = vmxnet3.pic, vmxnet3.device
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)):
        pic.write(port, value)
    vmxnet3.put(0x30000, bytes(60))
    for index in range(2):
        entry = struct.pack("<QII", 0x30000, 60 | 1 << 14, 3 << 12)
        vmxnet3.put(SENT + 16 * index, entry)
        device.mmio_write(0x600, 4, index + 1)
        if not index:
            assert pic.pending() == 5
            assert [device.mmio_read(0x1038, 4) for _ in range(2)] == [1, 0]
            assert pic.pending() is None
    assert pic.pending() is None  # masked
    device.mmio_write(0, 4, 0)
    assert pic.pending() == 5
    device.mmio_write(0x1020, 4, 0xCAFE0002)
    assert pic.pending() is None


def test_vmxnet3_takes_no_area_without_its_mark():
    slot = Slot("vmxnet3")
    slot.device.mmio_write(0x1010, 4, SHARED)
    slot.device.mmio_write(0x1020, 4, 0xCAFE0000)
    assert slot.device.mmio_read(0x1020, 4) == 1
    slot.device.mmio_write(0x600, 4, 1)
    assert [access.part for access in slot.accesses] == ["shared area"]


def test_each_bar_of_a_function_is_sized():
    slot = Slot("vmxnet3")
    bus = PciBus({1: slot.device})
    for at, base in ((0x10, HOLE_START), (0x14, HOLE_START + 0x1000), (0x18, 0)):
        bus.write(0xCF8, 4, 1 << 31 | 1 << 11 | at)
        assert bus.read(0xCFC, 4) == base
        bus.write(0xCFC, 4, 0xFFFFFFFF)
        assert bus.read(0xCFC, 4) == (0xFFFFF000 if base else 0)
