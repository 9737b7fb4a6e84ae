# SPDX-License-Identifier: GPL-2.0-or-later
"""MSI-X: table, masks and pending bits (PCI 3.0, 6.8.2 and 6.8.3), and where messages arrive."""

from __future__ import annotations

import struct

import pytest

from guestemu.abi.addresses import Gpa
from guestemu.events.devices import DeviceAccess, DeviceMessage
from guestemu.machine.devices import find_device
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.devices.hostile import Hostility
from guestemu.machine.devices.mmio import HOLE_START, MmioSpace
from guestemu.machine.devices.msix import MessagePort
from guestemu.machine.devices.pci import PciBus
from guestemu.machine.devices.pic import InterruptControllers
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.devices.quiesce import COMPLETED, Quiescence
from guestemu.machine.machine import Machine, MachineConfig

ENABLE, FUNCTION_MASK = 0x8000, 0x4000
CPU1 = 0xFEE01000
TO_CPU_1 = struct.pack("<III", CPU1, 0, 0x45)


class Computer:
    """Three CPUs and a device on the bus; `line` tells whether its INTx is asserted."""

    def __init__(self, name):
        self.machine = Machine(MachineConfig(frames=64, defer_memory_hooks=True))
        self.apics = LocalApics(3, lambda: 0, lambda: None)
        self.events = []
        self.pic = InterruptControllers(lambda: None)
        self.pic.write(0x21, 0)
        dma = DmaPort(self.machine.ram, name, self.events.append)
        self.device = find_device(name)(HOLE_START, self.pic.line(5), dma)
        self.device.offer_messages(MessagePort(dma, self.events.append, self.apics.message))
        self.bus = PciBus({1: self.device})
        self.space = MmioSpace([self.device])
        self.msix = self._capability()
        self.table = self.read_config(self.read_config(self.msix + 4) * 4 + 0x10)
        self.pending = self.table + (self.read_config(self.msix + 8) & ~7)

    def _capability(self):
        at = self.read_config(0x34, 1)
        while self.read_config(at, 1) != 0x11:
            at = self.read_config(at + 1, 1)
        return at

    def _select(self, offset):
        self.bus.write(0xCF8, 4, 1 << 31 | 1 << 11 | offset & 0xFC)
        return 0xCFC + (offset & 3)

    def read_config(self, offset, size=4):
        return self.bus.read(self._select(offset), size)

    def control(self, value):
        self.bus.write(self._select(self.msix + 2), 2, value)

    def set_entry(self, number, words, is_masked=False):
        for index, word in enumerate(struct.unpack("<III", words)):
            self.space.write(self.table + 16 * number + 4 * index, 4, word)
        self.mask(number, is_masked)

    def mask(self, number, is_masked):
        self.space.write(self.table + 16 * number + 12, 4, int(is_masked))

    def pending_bits(self):
        return self.space.read(self.pending, 8)

    def sent(self):
        return [event.entry for event in self.events if isinstance(event, DeviceMessage)]

    @property
    def line(self):
        return self.pic.pending() == 5


@pytest.fixture
def blk():
    return Computer("virtio-blk")


def test_the_table_is_sized_and_masked_at_first(blk):
    assert blk.read_config(blk.msix + 2, 2) == blk.device.vectors - 1
    assert blk.space.read(blk.table + 12, 4) == 1
    blk.set_entry(3, TO_CPU_1, is_masked=True)
    assert [blk.space.read(blk.table + 48 + at, 4) for at in (0, 4, 8, 12)] == [CPU1, 0, 0x45, 1]
    assert blk.space.read(blk.table + 48, 8) == CPU1
    blk.control(0xFFFF)
    assert blk.read_config(blk.msix + 2, 2) == ENABLE | FUNCTION_MASK | blk.device.vectors - 1


def test_a_message_is_the_vector_of_the_cpu_that_it_names(blk):
    blk.control(ENABLE)
    blk.set_entry(1, TO_CPU_1)
    blk.device.signal(1)
    assert [blk.apics.pending(index) for index in range(3)] == [None, 0x45, None]
    assert blk.events == [
        DeviceMessage(device="virtio-blk", entry=1, address=CPU1, data=0x45, cpus=(1,))
    ]


def test_a_masked_vector_is_pending_and_sent_once_when_it_is_unmasked(blk):
    """6.8.3.5: Per-vector Masking and Function Masking."""
    blk.control(ENABLE)
    blk.set_entry(2, TO_CPU_1, is_masked=True)
    for _ in range(2):
        blk.device.signal(2)
    assert (blk.pending_bits(), blk.sent()) == (1 << 2, [])
    assert blk.apics.pending(1) is None
    blk.space.write(blk.pending, 4, 0)
    assert blk.pending_bits() == 1 << 2
    blk.mask(2, False)
    assert (blk.pending_bits(), blk.sent()) == (0, [2])
    assert blk.apics.pending(1) == 0x45


def test_the_function_mask_holds_all_vectors(blk):
    blk.control(ENABLE | FUNCTION_MASK)
    for number in (0, 2):
        blk.set_entry(number, TO_CPU_1)
        blk.device.signal(number)
    blk.mask(0, True)
    assert blk.pending_bits() == 0b101
    blk.control(ENABLE)
    assert (blk.pending_bits(), blk.sent()) == (1, [2])


def test_a_pending_bit_outlives_a_rollback(blk):
    blk.control(ENABLE)
    blk.device.signal(1)
    blk.device.checkpoint()
    blk.set_entry(1, TO_CPU_1)
    blk.device.rollback()
    assert blk.pending_bits() == 1 << 1
    blk.set_entry(1, TO_CPU_1)
    assert blk.sent() == [1, 1]


@pytest.mark.parametrize(
    ("address", "data", "cpus"),
    [
        (0xFEE00000, 0x45, (0,)),
        (0xFEE02000, 0x45, (2,)),
        (0xFEE06004, 0x45, (1, 2)),  # logical
        (0xFEE0600C, 0x45, (1,)),  # with the redirection hint
        (0xFEE06004, 0x145, (1,)),  # lowest priority
        (0xFEE09000, 0x45, ()),
        (0xFEE01000, 0x0F, ()),  # no vector
        (0xFEE01000, 0x445, ()),  # NMI
    ],
)
def test_where_a_message_goes(blk, address, data, cpus):
    blk.control(ENABLE)
    blk.set_entry(0, struct.pack("<III", address, 0, data))
    blk.device.signal(0)
    assert blk.events[-1].cpus == cpus
    assert tuple(i for i in range(3) if blk.apics.pending(i) is not None) == cpus


def test_a_message_to_memory_is_a_store_of_the_device(blk):
    blk.control(ENABLE)
    blk.set_entry(0, struct.pack("<III", 0x3000, 0, 0x11223344))
    blk.device.signal(0)
    assert blk.machine.ram.read(Gpa(0x3000), 4, private=False) == b"\x44\x33\x22\x11"
    (access,) = blk.events
    assert isinstance(access, DeviceAccess)
    assert (access.part, access.is_write) == ("message", True)


def serve_flush(computer, queue=0):
    """A flush by queue `queue`, whose ring is set up with vector 1."""
    device, ram = computer.device, computer.machine.ram
    base, header, status = 0x10000, 0x20000, 0x21000
    for offset, size, value in (
        *((0x16, 2, queue), (0x20, 4, base), (0x28, 4, base + 0x1000)),
        *((0x30, 4, base + 0x2000), (0x1A, 2, 1), (0x1C, 2, 1)),
    ):
        device.mmio_write(offset, size, value)
    ram.write(Gpa(header), struct.pack("<IIQ", 4, 0, 0), private=False)
    chain = struct.pack("<QIHH", header, 16, 1, 1) + struct.pack("<QIHH", status, 1, 2, 0)
    ram.write(Gpa(base), chain, private=False)
    ram.write(Gpa(base + 0x1000), struct.pack("<HHH", 0, 1, 0), private=False)
    device.mmio_write(0x1000 + 4 * queue, 4, queue)


def test_virtio_interrupts_by_its_queues_vector_and_leaves_the_isr(blk):
    """Virtio 1.1, 4.1.5.3 and 4.1.5.1.2.1."""
    blk.control(ENABLE)
    blk.set_entry(1, TO_CPU_1)
    serve_flush(blk, queue=5)
    assert blk.sent() == [1]
    assert blk.device.mmio_read(0x2000, 1) == 0
    assert not blk.line
    blk.device.mmio_write(0x1A, 2, blk.device.vectors)
    assert blk.device.mmio_read(0x1A, 2) == 0xFFFF


def test_without_msix_a_device_uses_its_line(blk):
    serve_flush(blk)
    assert blk.line
    assert blk.sent() == []


def test_nvme_completes_by_the_vector_of_the_completion_queue():
    computer = Computer("nvme")
    device, ram = computer.device, computer.machine.ram
    computer.control(ENABLE)
    for number in (0, 3):
        computer.set_entry(number, TO_CPU_1)
    for offset, size, value in (
        *((0x24, 4, 15 << 16 | 15), (0x28, 8, 0x20000)),
        *((0x30, 4, 0x21000), (0x14, 4, 1)),
    ):
        device.mmio_write(offset, size, value)

    def submit(queue, base, tail, opcode, *words):
        command = struct.pack("<BBHIQQQQ", opcode, 0, 7, 1, 0, 0, 0x30000, 0)
        command += struct.pack("<6I", *words, *[0] * (6 - len(words)))
        ram.write(Gpa(base + 64 * (tail - 1)), command, private=False)
        device.mmio_write(0x1000 + 8 * queue, 4, tail)
        return struct.unpack("<H", ram.read(Gpa(0x2100E + 16 * (tail - 1)), 2, private=False))[0]

    assert submit(0, 0x20000, 1, 9, 7, 1 << 16 | 1) >> 1 == 0
    assert submit(0, 0x20000, 2, 5, 15 << 16 | 1, 3 << 16 | 3) >> 1 == 0
    assert submit(0, 0x20000, 3, 5, 15 << 16 | 2, 99 << 16 | 3) >> 1 == 0x108
    assert submit(0, 0x20000, 4, 1, 15 << 16 | 1, 1 << 16 | 1) >> 1 == 0
    assert computer.sent() == [0] * 4
    submit(1, 0x22000, 1, 0)
    assert computer.sent() == [0] * 4 + [3]
    assert not computer.line


class Tampering:
    """A `Tamper` that loses the interrupts `lost` and forges one behind the stores `forged`."""

    def __init__(self, lost=(), forged=()):
        self.lost, self.forged = lost, forged
        self.rises = self.stores = 0

    def change(self, kind, data, what):
        return data

    def after_store(self):
        self.stores += 1
        return self.stores - 1 in self.forged

    def loses_interrupt(self):
        self.rises += 1
        return self.rises - 1 in self.lost


def test_a_hostile_device_loses_messages_and_forges_masked_ones(blk):
    blk.control(ENABLE)
    for number in range(3):
        blk.set_entry(number, TO_CPU_1, is_masked=number == 2)
    lines = []
    hostility = Hostility(blk.device, blk.machine.ram, blk.events.append, lines.append)
    hostility.begin(Tampering(lost=(0,)))
    blk.device.signal(0)
    blk.device.signal(1)
    assert blk.sent() == [1]
    hostility.begin(Tampering(forged=range(4)))
    for _ in range(4):
        blk.device.dma.write(0x1000, b"x", "part")
    hostility.end()
    assert blk.sent() == [1, 0, 1, 2]  # entry 3 was never set up
    blk.device.signal(0)
    assert blk.sent()[4:] == [0]
    assert lines == []


def test_a_stopped_device_keeps_its_message_back(blk):
    blk.control(ENABLE)
    blk.set_entry(1, TO_CPU_1)
    stops = []
    quiescence = Quiescence(
        blk.device, COMPLETED, blk.machine.ram, blk.events.append, lambda: stops.append(1)
    )
    blk.device.dma.write(0x1000, b"x", "data", is_payload=True)
    serve_flush(blk)
    assert (stops, blk.sent()) == ([1], [])
    quiescence.end()
    quiescence.work.carry_out(blk.device)
    assert blk.sent() == [1]
