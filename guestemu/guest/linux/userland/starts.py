# SPDX-License-Identifier: GPL-2.0-or-later
"""How the second and later CPUs of each guest kind begin.

Plain SEV: INIT and a start-up IPI, in real mode at the page that the IPI names. SEV-ES: the same
IPIs reach a CPU that firmware left in the AP reset hold, and it goes to the address in the AP jump
table (GHCB specification, "SMP booting"; sev_es_setup_ap_jump_table() in 6.12); one that the kernel
put into the reset hold itself goes on behind it. SNP: the registers of the VMSA that the kernel
made (wakeup_cpu_via_vmgexit() in 6.12). TDX: a CPU of the firmware polls the mailbox of the MADT's
multiprocessor wakeup structure, in 64-bit mode with identity-mapped tables (ACPI 6.5, 5.2.12.19;
acpi_wakeup_cpu() in arch/x86/kernel/acpi/madt_wakeup.c of 6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

from guestemu.abi import ghcb
from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.x86 import CR0_PE, RFLAGS_FIXED, Mode
from guestemu.guest.linux import acpi
from guestemu.guest.linux.es import SevEs
from guestemu.machine.ap_creation import ApCreation, ApState
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.engine import Context
from guestemu.machine.machine import Machine
from guestemu.machine.segments import segment_layout
from guestemu.machine.vmsa import load_vmsa

_BASE: Final = 8
"""Offset of the base in a cached segment."""

_JUMP: Final = struct.Struct("<HH")
"""IP and CS at the begin of the AP jump table."""

_MAILBOX: Final = struct.Struct("<HxxIQ")
"""Command, APIC ID, wakeup vector."""

_WAKEUP: Final = 1
_CR0_AT: Final = 0x158
_EFER_AT: Final = 0xD0
_EFER_SVME: Final = 1 << 12
_FEATURES_AT: Final = 0x3B0

Begin = Callable[[], None]
"""Gives the CPU, which executes from now on, its first registers."""


class CpuStarts(Protocol):
    """Starts CPUs of one guest kind."""

    def take(self, index: int) -> Begin | None:
        """How CPU `index` begins, once after it was started; None for one that was not."""

    def is_stopped(self, index: int) -> bool:
        """Whether the hypervisor keeps CPU `index` from executing."""


def _reset(machine: Machine, mode: Mode) -> None:
    """The current CPU is in `mode`, without translations."""
    machine.current.enter(mode, 0)
    if machine.translations is not None:
        machine.translations.drop_all()


def _enter_real_mode(machine: Machine, selector: int, offset: int) -> None:
    """The current CPU is in real mode at `selector`:`offset`, with interrupts off."""
    _reset(machine, Mode.REAL16)
    vcpu = machine.current
    context = Context(machine.engine)
    at = segment_layout(machine.modes).code
    struct.pack_into("<I", context.bytes, at, selector)
    struct.pack_into("<Q", context.bytes, at + _BASE, selector << 4)
    context.restore()
    machine.engine.flush_tlb()
    vcpu.write_register("rflags", RFLAGS_FIXED)
    vcpu.write_register("rip", offset)


class SipiStarts:
    """Plain SEV; with `sev`, SEV-ES."""

    def __init__(self, machine: Machine, apics: LocalApics, sev: SevEs | None) -> None:
        self._machine = machine
        self._apics = apics
        self._sev = sev

    def take(self, index: int) -> Begin | None:
        """See `CpuStarts`."""
        vector = self._apics.take_start(index)
        if vector is None:
            return None
        if self._sev is None:
            return lambda: _enter_real_mode(self._machine, vector << 8, 0)
        return self._begin_encrypted

    def _begin_encrypted(self) -> None:
        assert self._sev is not None
        if not self._sev.release():
            table = self._machine.ram.read(Gpa(self._sev.jump_table), _JUMP.size)
            offset, selector = _JUMP.unpack(table)
            _enter_real_mode(self._machine, selector, offset)

    def is_stopped(self, index: int) -> bool:
        """See `CpuStarts`."""
        return False


class VmsaStarts:
    """SNP."""

    def __init__(self, machine: Machine, apics: LocalApics, aps: ApCreation) -> None:
        self._machine = machine
        self._apics = apics
        self._aps = aps

    def take(self, index: int) -> Begin | None:
        """See `CpuStarts`."""
        gpa = self._aps.take_entered(index)
        if gpa is None:
            return None
        page = self._machine.ram.read(gpa, PAGE_SIZE)
        if not _is_entered(page):
            return None
        self._apics.state.apics[index].is_waiting = False

        def begin() -> None:
            _reset(self._machine, Mode.REAL16)
            load_vmsa(self._machine, page)

        return begin

    def is_stopped(self, index: int) -> bool:
        """See `CpuStarts`."""
        return self._aps.state(index) in {ApState.STOPPED, ApState.FAILS}


def _is_entered(page: bytes) -> bool:
    """Whether VMRUN takes the VMSA: EFER.SVME and SNP's feature are set (APM volume 2, 15.5.1 and
    15.36.12). Only one in real mode is modelled, which Linux makes."""
    control, efer, features = (
        int.from_bytes(page[at : at + 8], "little") for at in (_CR0_AT, _EFER_AT, _FEATURES_AT)
    )
    has_feature = features & ghcb.SEV_FEATURE_SNP_ACTIVE
    return bool(efer & _EFER_SVME and has_feature and not control & CR0_PE)


class MailboxStarts:
    """TDX."""

    def __init__(self, machine: Machine, apics: LocalApics) -> None:
        self._machine = machine
        self._apics = apics

    def take(self, index: int) -> Begin | None:
        """See `CpuStarts`. The firmware's CPU takes the command by writing 0 in its place."""
        apic = self._apics.state.apics[index]
        if not apic.is_waiting:
            return None
        ram = self._machine.ram
        command, apic_id, vector = _MAILBOX.unpack(ram.read(Gpa(acpi.MAILBOX), _MAILBOX.size))
        if command != _WAKEUP or apic_id != index:
            return None
        ram.write(Gpa(acpi.MAILBOX), b"\0\0")
        apic.is_waiting = False

        def begin() -> None:
            _reset(self._machine, Mode.LONG64)
            vcpu = self._machine.current
            vcpu.write_register("rflags", RFLAGS_FIXED)
            vcpu.write_register("rip", vector)

        return begin

    def is_stopped(self, index: int) -> bool:
        """See `CpuStarts`."""
        return False


def starts_of(machine: Machine, apics: LocalApics, sev: SevEs | None) -> CpuStarts:
    """Those of `machine`'s guest kind."""
    if machine.config.tdx:
        return MailboxStarts(machine, apics)
    if sev is not None and sev.aps is not None:
        return VmsaStarts(machine, apics, sev.aps)
    return SipiStarts(machine, apics, sev)
