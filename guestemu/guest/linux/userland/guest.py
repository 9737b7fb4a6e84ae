# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel in user space behind the `Guest` interface: `userland:DEVICE@IMAGE`, with several
CPUs `userland:DEVICE/CPUS@IMAGE`.

Its operations are the uses of a device through the kernel's own driver (hostile_device.py), each
from the checkpoint at which PID 1 waits for a command. The machine is in the middle of a process
here, so kernel functions cannot be called: the other operations answer -ENOSYS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import Gpa, Gva
from guestemu.abi.errno import ENOSYS
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.names import nearest
from guestemu.abi.regions import REGIONS, Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.events.base import Event
from guestemu.events.exits import HypercallExit, MapGpaRangeExit
from guestemu.guest.base import CallOutcome, Guest, PlacedRegion, RawRegisters
from guestemu.guest.linux.images import find_image
from guestemu.guest.linux.load import BUDGET_FACTOR, LOADER, MIN_MEMORY
from guestemu.guest.linux.recorder import joined
from guestemu.guest.linux.userland.hostile_device import HostileDevice
from guestemu.guest.linux.userland.session import Setting, Userland
from guestemu.machine.devices import device_names
from guestemu.machine.devices.apic import MSRS as APIC_MSRS
from guestemu.machine.devices.apic import LocalApics
from guestemu.machine.exits import ExitHandler, Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine.leafmap import LeafMap, Window

KIND: Final = "userland"
DEFAULT_IMAGE: Final = "6.12"
_OPTIONS: Final = "init_on_alloc=1"
"""So that a fresh buffer is zero (hostile_device.py)."""

_NOT_HERE: Final = CallOutcome(-ENOSYS)


class _Heard(ExitHandler):
    """Passes a kernel's exits on to the testbed's handler, and reports conversions to the rules.
    `apics` answer their own MSRs, which are no exits to the host."""

    def __init__(
        self, handler: ExitHandler, hear: Callable[[Event], None], apics: LocalApics | None
    ) -> None:
        self._handler = handler
        self._hear = hear
        self._apics = apics

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        value = self._handler.hypercall(call)
        args = (call.a0, call.a1, call.a2, call.a3)
        self._hear(HypercallExit(call.nr, args, value, 0, call.cpl, call.is_64bit))
        return value

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        value = self._handler.map_gpa_range(call)
        args = (call.gpa, call.pages, call.attributes, 0)
        self._hear(MapGpaRangeExit(KVM_HC_MAP_GPA_RANGE, args, value, 0, origin=call.origin))
        return value

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        if self._apics is not None and index in APIC_MSRS:
            return self._apics.read(vcpu.index, index)
        return self._handler.rdmsr(index, vcpu)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        if self._apics is not None and index in APIC_MSRS:
            self._apics.write(vcpu.index, index, value)
        else:
            self._handler.wrmsr(index, value, vcpu)


class UserlandGuest(Guest):
    """See the module's docstring. `budget` bounds each use of the driver, in basic blocks."""

    def __init__(self, name: str, device: HostileDevice, budget: int) -> None:
        running = device.running
        self.name = name
        self.device = self._device = device
        self.running = running
        self.generation = "6.12"
        self.budget = budget
        self.machine = running.machine
        self.td = running.platform.td
        self.boot_exits = joined(running.recorder.exits)
        self.dma_frames = range(0)
        device.keep()
        running.checkpoint()
        machine = self.machine
        vcpu = machine.current
        base = vcpu.read_memory(Gva(running.kernel.address("page_offset_base")), 8) or b""
        self.direct_map = Gva(int.from_bytes(base, "little"))
        self.regions = {
            region: PlacedRegion(self.direct_map, Gpa(0), REGIONS[region].pages)
            for region in Region
            if region is not Region.G
        }
        self.leaf_map = LeafMap(
            machine.ram,
            Gpa(vcpu.read_register("cr3") & ~0xFFF & ~machine.pte_cbit),
            machine.bit,
            Window(self.direct_map, 0, machine.config.frames),
            None,
        )
        running.checkpoint()
        device.begin()

    def set_budget(self, budget: int) -> None:
        """Bounds each use of the driver from now on, in basic blocks."""
        self.budget = self._device.budget = budget

    def reset(self) -> None:
        """Back to PID 1 that waits; the device is honest."""
        self.running.rollback()
        self.leaf_map.rollback()
        self._device.begin()

    def use_device(self, call: Callable[[HostileDevice], CallOutcome]) -> CallOutcome:
        """See `Guest`."""
        machine, running = self.machine, self.running
        cpus = running.hardware.cpus
        if cpus is not None:
            machine.activate(cpus.state.current)  # a testbed looks from vCPU 0
        handler, listener = machine.hooks.handler, machine.log.listener
        assert handler is not None

        def hear(event: Event) -> None:
            running.hear(event)
            if listener is not None:
                listener(event)

        machine.hooks.handler = _Heard(handler, running.hear, running.hardware.apics)
        machine.log.listener = hear
        try:
            return call(self._device)
        finally:
            machine.hooks.handler, machine.log.listener = handler, listener

    def location(self, rip: int) -> str:
        """The kernel's function."""
        return self.running.kernel.symbol_at(rip)

    def close(self) -> None:
        """Does nothing: the loader keeps guests for the next request."""

    # What cannot be called here ---------------------------------------------------------------

    def set_memory_encrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def set_memory_decrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def early_set_memory_encrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def early_set_memory_decrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def memset(self, gva: Gva, value: int, size: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def load(self, gva: Gva) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def touch_cbit(self, gva: Gva, private: bool) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def kvm_init_platform(self, efi: bool) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def kvm_guest_cpu_offline(self) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def set_memory_enc_stop_conversion(self) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def raw_hypercall(
        self, instruction: Instruction, registers: RawRegisters, mode: Mode, cpl: int
    ) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def raw_rdmsr(self, index: int, mode: Mode, cpl: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def raw_wrmsr(self, index: int, value: int, mode: Mode, cpl: int) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def fail_split(self, after: int) -> None:
        """See `Guest`."""

    def clear_faults(self) -> None:
        """See `Guest`."""

    def edit_entry(self, gva: Gva, clear_all: bool) -> bool:
        """See `Guest`."""
        return False

    def dma_alloc_coherent(self, size: int, may_block: bool) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE

    def dma_free_coherent(self, gpa: Gpa) -> CallOutcome:
        """See `Guest`."""
        return _NOT_HERE


class UserlandGuests:
    """Guests by kernel, device and setting: each is brought to user space once in a process."""

    def __init__(self) -> None:
        self._guests: dict[tuple[str, Setting], UserlandGuest] = {}

    def guest(self, spec: str, setting: Setting, budget: int) -> UserlandGuest:
        """The guest `spec` (DEVICE@IMAGE, or DEVICE/CPUS@IMAGE: with several CPUs the device has
        MSI-X); `setting` is the machine's, `budget` that of a program.

        Raises `InputError` for an unknown device, an image that cannot be found or does not
        arrive.
        """
        device_text, _, image = spec.partition("@")
        name, _, cpus = device_text.partition("/")
        how = f"guest {KIND}:{spec}: write {KIND}:DEVICE@IMAGE or {KIND}:DEVICE/CPUS@IMAGE"
        if name not in device_names():
            raise InputError(f"{how}; {nearest(name, device_names())}")
        if not (cpus or "1").isdecimal():
            raise InputError(f"{how}; cpus {cpus}: a number")
        setting = msgspec.structs.replace(
            setting,
            devices=(name,),
            append=_OPTIONS,
            memory=max(setting.memory, MIN_MEMORY),
            cpus=int(cpus or "1"),
        )
        path = find_image(image or DEFAULT_IMAGE)
        key = (str(path.resolve()), setting)
        guest = self._guests.get(key)
        if guest is None:
            running = Userland(LOADER).start(path, setting)
            device = HostileDevice(running, name, budget * BUDGET_FACTOR)
            guest = UserlandGuest(f"{KIND}:{spec}", device, budget * BUDGET_FACTOR)
            self._guests[key] = guest
        guest.set_budget(budget * BUDGET_FACTOR)
        guest.reset()
        return guest


USERLAND: Final = UserlandGuests()
"""The process's own."""
