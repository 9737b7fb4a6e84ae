# SPDX-License-Identifier: GPL-2.0-or-later
"""How a second CPU begins as each guest kind (starts.py)."""

from __future__ import annotations

import struct

import pytest
from bare_machine import DATA, FRAMES, Bare
from ghcb_guest import ES, GHCB, SNP

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.msrs import MSR_AMD64_SEV_ES_GHCB
from guestemu.guest.linux import acpi
from guestemu.guest.linux.es import attach_sev
from guestemu.guest.linux.userland.starts import starts_of
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.exits import Halt
from guestemu.machine.machine import MachineConfig

CODE = 0x9000
"""In low memory, which real-mode code reaches in both views."""

VMSA = DATA + PAGE_SIZE
JUMP_TABLE = DATA + 5 * PAGE_SIZE
TO_BP = b"\x8c\xcd\xf4"
"""mov bp, cs; hlt."""

PAT = 0x0007_0406_0007_0406
ICR, INIT, STARTUP = 0x830, 0x4500, 0x600


class Two:
    """A bare machine of two CPUs; the second one waits to be started."""

    def __init__(self, status: int = ES, tdx: bool = False) -> None:
        config = MachineConfig(frames=FRAMES, vcpus=2, sev_status=status, tdx=tdx)
        self.machine = Bare(config).machine
        self.apics = LocalApics(2, lambda: 0, lambda: None)
        self.sev = None
        if not tdx:
            self.sev = attach_sev(self.machine, lambda *_: CpuidLeaf(0, 0, 0, 0))
            self.sev.separate_vcpus()
            self.sev.jump_table = JUMP_TABLE
        self.starts = starts_of(self.machine, self.apics, self.sev)
        self.write(CODE + 0x20, TO_BP)
        self.machine.ram.write(Gpa(GHCB), bytes(PAGE_SIZE), private=False)

    def write(self, gpa, data):
        self.machine.ram.write(Gpa(gpa), data)

    def begin(self):
        """The second CPU begins, if it was started; what it is then."""
        start = self.starts.take(1)
        if start is None:
            return None
        self.machine.activate(1)
        start()
        return self.machine.current

    def send(self, command):
        self.apics.write(0, ICR, 1 << 32 | command)

    @property
    def ghcb_msr(self):
        return self.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB]

    @ghcb_msr.setter
    def ghcb_msr(self, value):
        self.machine.msrs.platform[MSR_AMD64_SEV_ES_GHCB] = value


def vmsa(**changed):
    """struct sev_es_save_area as wakeup_cpu_via_vmgexit() fills it, for CS:IP = 0900:0020."""
    fields = {"efer": 0x1000, "cr4": 0x40, "cr0": 0x60000010, "features": 1} | changed
    page = bytearray(PAGE_SIZE)
    struct.pack_into("<HHIQ", page, 0x10, CODE >> 4, 0x9B, 0xFFFF, CODE)
    for at, value in (
        *((0xD0, fields["efer"]), (0x148, fields["cr4"]), (0x158, fields["cr0"])),
        *((0x170, 2), (0x178, 0x20), (0x268, PAT), (0x3B0, fields["features"])),
    ):
        struct.pack_into("<Q", page, at, value)
    return bytes(page)


def snp_with(page):
    two = Two(SNP)
    assert two.sev.snp.rmp.rmpadjust(VMSA >> 12, False, abi.RMPADJUST_VMSA | 1).code == 0
    two.write(VMSA, page)
    assert two.sev.aps.ask(abi.AP_CREATE, 1, VMSA, 1, kernel=two.sev.kernel) is None
    return two


def test_snp_takes_the_registers_of_the_vmsa():
    two = snp_with(vmsa())
    cpu = two.begin()
    read = cpu.read_register
    assert (read("cs"), read("rip"), read("cr4")) == (CODE >> 4, 0x20, 0x40)
    assert two.machine.engine.read_msr(0x277) == PAT
    assert cpu.run(0x20, 10) == Halt(0x23)
    assert read("rbp") == CODE >> 4
    assert two.begin() is None, "it begins once after each creation"


@pytest.mark.parametrize("changed", [{"efer": 0}, {"features": 0}, {"cr0": 0x60000011}])
def test_a_vmsa_that_vmrun_refuses_starts_no_cpu(changed):
    assert snp_with(vmsa(**changed)).begin() is None


def test_a_destroyed_vcpu_is_stopped():
    two = snp_with(vmsa())
    assert not two.starts.is_stopped(1)
    two.sev.aps.ask(abi.AP_DESTROY, 1, 0, 0, kernel=two.sev.kernel)
    assert two.starts.is_stopped(1)
    assert two.begin() is None


def test_each_cpu_has_a_ghcb_of_its_own():
    two = Two()
    two.ghcb_msr = GHCB
    two.machine.checkpoint()
    two.machine.activate(1)
    assert two.ghcb_msr == 0
    two.ghcb_msr = GHCB + PAGE_SIZE
    two.machine.activate(0)
    assert two.ghcb_msr == GHCB
    two.machine.activate(1)
    assert two.ghcb_msr == GHCB + PAGE_SIZE


def test_es_begins_at_the_jump_table():
    two = Two()
    two.write(JUMP_TABLE, struct.pack("<HH", 0x20, CODE >> 4))
    assert two.begin() is None
    two.send(INIT)
    two.send(STARTUP | 0x99)
    cpu = two.begin()
    assert cpu.run(cpu.read_register("rip"), 10) == Halt(0x23)
    assert cpu.read_register("rbp") == CODE >> 4


def test_a_td_takes_its_own_command_from_the_mailbox():
    two = Two(tdx=True)
    for command, apic_id in ((0, 1), (1, 0)):
        two.write(acpi.MAILBOX, struct.pack("<HxxIQ", command, apic_id, CODE))
        assert two.begin() is None
    two.write(acpi.MAILBOX, struct.pack("<HxxIQ", 1, 1, CODE))
    cpu = two.begin()
    assert (cpu.read_register("rip"), cpu.is_long_mode, cpu.cpl) == (CODE, True, 0)
    assert two.machine.ram.read(Gpa(acpi.MAILBOX), 2) == b"\0\0", "it is taken"
    two.write(acpi.MAILBOX, struct.pack("<HxxIQ", 1, 1, CODE))
    assert two.begin() is None, "version 0 starts a CPU once"
