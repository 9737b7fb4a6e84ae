# SPDX-License-Identifier: GPL-2.0-or-later
"""The PC around a booted kernel: 8259s, 8254, clock, PCI bus, and devices with DMA.

Installs itself into a machine that `build_machine` made, before the first instruction: ports of the
platform (UART, delay port) stay where they were. Guest time is the platform's TSC, which kvmclock
says runs at 1 GHz. Several CPUs have local APICs: devices interrupt them by MSI-X, and the 8259s
reach CPU 0 through its LINT0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.events.base import Event
from guestemu.guest.linux import acpi
from guestemu.guest.linux.platform import GuestPlatform
from guestemu.guest.linux.userland.cpus import IPI, Cpus, apic_cpuid
from guestemu.guest.linux.userland.starts import starts_of
from guestemu.machine.devices import find_device, pci, pic, pit, rtc
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.devices.mmio import HOLE_START, SPACING, MmioSpace
from guestemu.machine.devices.msix import MessagePort
from guestemu.machine.devices.pci import PciBus, PciFunction
from guestemu.machine.devices.pic import InterruptControllers
from guestemu.machine.devices.pit import IntervalTimer
from guestemu.machine.devices.port import DmaPort
from guestemu.machine.devices.rtc import RealTimeClock
from guestemu.machine.devices.state import StatefulDevice
from guestemu.machine.machine import Machine

_LINES: Final = (5, 10, 11, 9, 7, 3)
"""IRQs for the slots 1, 2, …; more devices share them."""

_MAX_DEVICES: Final = 16
_TIMER_IRQ: Final = 0
_ELCR: Final = (0x4D0, 0x4D1)


class PcHardware:
    """See the module's docstring. `devices` are the functions by the names they were asked for."""

    def __init__(
        self,
        machine: Machine,
        platform: GuestPlatform,
        names: Sequence[str],
        notify: Callable[[Event], None],
    ) -> None:
        if len(names) > _MAX_DEVICES or len(set(names)) != len(names):
            raise InputError(f"devices {', '.join(names)}: each once, {_MAX_DEVICES} at most")
        self._machine = machine
        self._platform = platform
        self.pic = InterruptControllers(self.look_soon)
        self.pit = IntervalTimer(lambda: platform.tsc)
        self.rtc = RealTimeClock()
        self.devices: dict[str, PciFunction[msgspec.Struct]] = {}
        for index, name in enumerate(names):
            make = find_device(name)
            dma = DmaPort(machine.ram, name, notify)
            line = self.pic.line(_LINES[index % len(_LINES)])
            self.devices[name] = make(HOLE_START + index * SPACING, line, dma)
        self.bus = PciBus(dict(enumerate(self.devices.values(), 1)))
        self.apics: LocalApics | None = None
        self.cpus: Cpus | None = None
        if len(machine.vcpus) > 1:
            count = len(machine.vcpus)
            self.apics = LocalApics(count, lambda: platform.tsc, self._on_ipi)
            self.cpus = Cpus(machine, self.apics, starts_of(machine, self.apics, platform.sev))
            if platform.sev is not None:
                platform.sev.separate_vcpus()
            base = machine.hooks.cpuid_function or platform.cpuid
            machine.hooks.cpuid_function = apic_cpuid(base, machine)
            for device in self.devices.values():
                device.offer_messages(MessagePort(device.dma, notify, self._on_message))
        self.parts: tuple[StatefulDevice[msgspec.Struct], ...] = (
            *(self.pic, self.pit, self.rtc, self.bus),
            *(part for part in (self.apics, self.cpus) if part is not None),
            *self.devices.values(),
        )
        machine.devices.extend(self.parts)
        machine.mmio = MmioSpace(tuple(self.devices.values()))
        self.unspent = 0
        """Blocks that runs were cut short by since `take_unspent`."""
        hooks = machine.hooks
        self._other_in, self._other_out = hooks.port_in, hooks.port_out
        hooks.port_in, hooks.port_out = self._port_in, self._port_out

    def look_soon(self) -> None:
        """Ends the run at the next basic block, so that interrupts are looked at. (A stop inside
        the access itself would leave RIP at the start of its block, fact U4.)"""
        watch = self._machine.hooks.watch
        if watch.left > 0:
            self.unspent += watch.left
            watch.left = 0

    def _on_ipi(self) -> None:
        if self.cpus is not None:
            self.cpus.end_turn(lambda turn: turn.event == IPI)
        self.look_soon()

    def _on_message(self, address: int, data: int) -> tuple[int, ...]:
        """A device's message to the local APICs: the CPUs that take it."""
        self.look_soon()
        return () if self.apics is None else self.apics.message(address, data)

    def take_unspent(self) -> int:
        """Blocks of the last run's budget that `look_soon` took away."""
        unspent, self.unspent = self.unspent, 0
        return unspent

    def pending_irq(self) -> int | None:
        """The interrupt request that the 8259s have now."""
        if self.pit.take_expired():
            self.pic.pulse(_TIMER_IRQ)
        return self.pic.pending()

    def has_interrupt(self, index: int) -> bool:
        """Whether an interrupt stands at CPU `index` now."""
        apics = self.apics
        if apics is None:
            return self.pending_irq() is not None
        if apics.pending(index) is not None:
            return True
        return apics.takes_extint(index) and self.pending_irq() is not None

    def has_nmi(self, index: int) -> bool:
        """Whether an NMI stands at CPU `index`."""
        return self.apics is not None and self.apics.state.apics[index].has_nmi

    def acknowledge_nmi(self, index: int) -> None:
        """CPU `index` takes its NMI."""
        if self.apics is not None:
            self.apics.state.apics[index].has_nmi = False

    def acknowledge(self, index: int) -> int:
        """CPU `index` takes the interrupt that stands at it: its vector."""
        if self.apics is not None:
            vector = self.apics.pending(index)
            if vector is not None:
                self.apics.acknowledge(index, vector)
                return vector
        irq = self.pic.pending()
        assert irq is not None
        return self.pic.acknowledge(irq)

    def deadline(self) -> int | None:
        """When a timer next fires, of those that wake a CPU; None for never."""
        apics, cpus = self.apics, self.cpus
        timers = [self.pit.deadline]
        if apics is not None and cpus is not None:
            on = [index for index in range(len(cpus.states)) if cpus.is_on(index)]
            timers += [apics.deadline(index) for index in on]
        return min((timer for timer in timers if timer is not None), default=None)

    def _port_out(self, port: int, size: int, value: int) -> None:
        if port in pci.PORTS:
            self.bus.write(port, size, value)
        elif port in pic.PORTS:
            self.pic.write(port, value & 0xFF)
        elif port in pit.PORTS:
            self.pit.write(port, value & 0xFF)
        elif port in rtc.PORTS:
            self.rtc.write(port, value & 0xFF)
        elif self._other_out is not None:
            self._other_out(port, size, value)

    def _port_in(self, port: int, size: int) -> int:
        if port in pci.PORTS:
            return self.bus.read(port, size)
        if port in pic.PORTS:
            return self.pic.read(port)
        if port in rtc.PORTS:
            return self.rtc.read(port)
        if port in _ELCR:
            return 0
        if port in acpi.PM_PORTS and self.apics is not None:
            return acpi.SCI_ENABLED if port == acpi.PM_CONTROL else 0
        if self._other_in is not None:
            return self._other_in(port, size)
        return (1 << 8 * size) - 1
