# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine: one emulated CPU, two-view RAM, n vCPU contexts, and how they are put back.

The unit of work is `rollback`: context restore plus a copy of the dirty pages, never a new machine
(a fresh engine costs hundreds of times as much as a reset).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from guestemu.abi.addresses import Gpa
from guestemu.abi.caches import CacheModel
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import SEV_STATUS_SEV
from guestemu.events.log import EventLog
from guestemu.machine import layout
from guestemu.machine.cache import CachedRam
from guestemu.machine.cipher import PageCipher
from guestemu.machine.cpuid import sev_guest_leaves
from guestemu.machine.devices.mmio import MmioSpace
from guestemu.machine.engine import Engine
from guestemu.machine.hooks import CpuHooks
from guestemu.machine.interventions import Interventions, Order
from guestemu.machine.launch import Launcher
from guestemu.machine.memory import GuestRam
from guestemu.machine.modes import ModeTable
from guestemu.machine.msr import MsrFile
from guestemu.machine.native import HostCode
from guestemu.machine.tlb import TlbWalker
from guestemu.machine.translations import Translations
from guestemu.machine.vcpu import Vcpu
from guestemu.machine.view_bit import NO_VIEW_BIT, ViewBit, sev_bit, tdx_bit
from guestemu.machine.view_gates import ViewGates

if TYPE_CHECKING:
    from guestemu.machine.cache_instructions import CacheInstructions

MMU_CBITS: Final = frozenset({33, *range(36, 40)})
"""Positions of the view bit that the emulated MMU accepts; others go through our own walker."""

_INNER_CBIT: Final = 45


class MachineConfig(msgspec.Struct, frozen=True):
    """What a machine is made of.

    `frames` of RAM from GPA 0; `cbit` bit number, or None for a machine without memory encryption
    (one view); `tdx` makes that bit a TD's shared bit; `sev_status` as MSR 0xC0010131 reads; `key`
    16 bytes of the guest's memory key;
    `native_hooks` may be turned off to run the Python bodies of the hooks;
    with `defer_memory_hooks` loads and stores are not watched before `watch_memory`. `coherent` is
    what CPUID says, `cache` what the caches do; `cache_seed` decides their random evictions.
    Both views of the first `mirrored` frames are the same bytes: code without paging runs there.
    """

    frames: int
    cbit: int | None = 39
    vcpus: int = 1
    sev_status: int = SEV_STATUS_SEV
    coherent: bool = True
    key: bytes = bytes(range(16))
    native_hooks: bool = True
    defer_memory_hooks: bool = False
    cache: CacheModel = CacheModel.NONE
    cache_seed: int = 0
    tdx: bool = False
    mirrored: int = layout.LOW_PAGES


class Device(Protocol):
    """Hardware state beside CPU and RAM that a rollback has to put back."""

    def checkpoint(self) -> None:
        """Keeps the present state."""

    def rollback(self) -> None:
        """Returns to the state kept last."""


def _make_ram(engine: Engine, config: MachineConfig, bit: ViewBit, mirrored: int) -> GuestRam:
    cipher = PageCipher(config.key)
    if config.cache is CacheModel.NONE:
        return GuestRam(engine, config.frames, bit, cipher, mirrored)
    if config.defer_memory_hooks:
        raise InputError("cache: a booted kernel has no cache model; write `cache none`")
    evicts = config.cache is CacheModel.EVICTING
    seed = config.cache_seed
    return CachedRam(engine, config.frames, bit, cipher, mirrored, evicts, seed)


class Machine:
    """See the module's docstring. Page tables are the guest's business: it gives CR3 to `boot`."""

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.engine = Engine()
        code = HostCode()
        if not config.native_hooks:
            code.available = False
        self.code = code
        make_bit = tdx_bit if config.tdx else sev_bit
        self.bit = NO_VIEW_BIT if config.cbit is None else make_bit(config.cbit)
        """The view bit of page-table entries; that of physical addresses is `ram.bit`."""
        self.pte_cbit = self.bit.mask
        uses_walker = config.cbit is not None and config.cbit not in MMU_CBITS
        inner = _INNER_CBIT if uses_walker or config.cbit is None else config.cbit
        mirrored = config.frames if config.cbit is None else config.mirrored
        if config.tdx:
            mirrored = 0  # without paging an address is private by itself
        self.ram = _make_ram(self.engine, config, make_bit(inner), mirrored)
        self.tlb = TlbWalker(self.engine, self.ram, self.bit, self.code) if uses_walker else None
        self.hooks = CpuHooks(self.engine, code, 1 << inner)
        self.ram.is_plain = config.defer_memory_hooks
        if not config.defer_memory_hooks:
            self.ram.install(code)
        self.cache = self._cache()
        self.hooks.traps.add(layout.LANDING)
        self.msrs = MsrFile(config.sev_status)
        if config.cbit is not None and not config.tdx:
            self.hooks.cpuid = sev_guest_leaves(config.sev_status, config.cbit, config.coherent)
        elif config.cbit is None and not config.sev_status:
            self.hooks.cpuid = sev_guest_leaves(0, 0)
        self.launcher = Launcher(self.engine, code)
        self.vcpus = [Vcpu(self, index) for index in range(config.vcpus)]
        self.current = self.vcpus[0]
        self.devices: list[Device] = []
        self.log = EventLog()
        self.gates: ViewGates | None = None
        self.translations: Translations | None = None
        self.interventions: Interventions | None = None
        self.mmio: MmioSpace | None = None
        self.modes: ModeTable

    def _cache(self) -> CacheInstructions | None:
        """The cache's instructions, where there is a cache; their disassembler takes a while to
        load."""
        if not isinstance(self.ram, CachedRam):
            return None
        from guestemu.machine.cache_instructions import CacheInstructions

        return CacheInstructions(self.engine, self.hooks, self.ram)

    def boot(self, cr3: int) -> None:
        """Sets up the CPU's modes over the page tables at `cr3`; needs the descriptor tables."""
        self.hooks.watch.left = 1 << 32
        self.modes = ModeTable(self.engine, self.ram, cr3)

    def watch_memory(self, shared: Iterable[int]) -> None:
        """Ends a phase in which pages were also written past the machine (a loader, a snapshot),
        with or without memory hooks (`defer_memory_hooks`): from now on views are exact.

        `shared` are the frames whose shared view is the current one; the private view is current
        everywhere else. Makes a checkpoint's worth of base content.
        """
        is_new = self.ram.is_plain
        self.ram.adopt(shared)
        if is_new:
            self.ram.install(self.code)
        self.engine.flush_blocks()

    def gate_views(self) -> ViewGates:
        """From now on views of pages can be closed to the CPU; all are open at first. The CPU then
        translates by a walk of our own. Asked again, returns the same gates."""
        if self.gates is None:
            self.gates = ViewGates(self.engine, self.config.frames, not self.config.tdx)
            if self.tlb is None:
                self.tlb = TlbWalker(self.engine, self.ram, self.bit, self.code)
            self.tlb.gates = self.gates
            self.devices.append(self.gates)
            self.engine.flush_tlb()
        return self.gates

    def keep_translations(self) -> Translations:
        """From now on each vCPU keeps its translations until it invalidates them itself, also
        while another vCPU executes; whoever sees INVLPG and moves to CR3 and CR4 has to say so.
        Asked again, returns the same ones."""
        if self.translations is None:
            self.translations = Translations(len(self.vcpus), lambda: self.current.index)
            if self.tlb is None:
                self.tlb = TlbWalker(self.engine, self.ram, self.bit, self.code)
            self.tlb.held = self.translations
            self.devices.append(self.translations)
            self.engine.flush_tlb()
        return self.translations

    def intervene(self, after: int, order: Order) -> None:
        """Orders what happens when the guest has begun `after` more instructions, until the next
        rollback; see `Interventions`."""
        self._orders().after(after, order)

    def wait(self, events: int) -> None:
        """The next order of `intervene` counts from the `events`th event of the log on."""
        self._orders().wait(events)

    def _orders(self) -> Interventions:
        if self.interventions is None:
            self.interventions = Interventions(self.engine, self.hooks, self.code, self.log)
            self.devices.append(self.interventions)
        return self.interventions

    def activate(self, index: int) -> Vcpu:
        """Makes vCPU `index` the one that the CPU executes; contexts switch, the TLB is flushed."""
        if self.current.index != index:
            self.current.save()
            self.msrs.change(self.current.index, index)
            self.current = self.vcpus[index]
            self.current.load()
        return self.current

    def checkpoint(self) -> None:
        """What `rollback` returns to: RAM now, every vCPU as it is now."""
        self.current.save()
        for vcpu in self.vcpus:
            if vcpu is not self.current:
                vcpu.save()
        self.ram.checkpoint()
        for device in self.devices:
            device.checkpoint()

    def rollback(self) -> None:
        """RAM back to the checkpoint. vCPU registers are not: the next run sets them."""
        is_stale = self.ram.rollback()
        if self.hooks.patched:
            self.hooks.undo_patches()
        for device in self.devices:
            device.rollback()
        if self.gates is not None and self.gates.take_stale():
            is_stale = True
        if is_stale:
            self.engine.flush_tlb()

    def raise_errors(self) -> None:
        """Raises what a hook caught, if anything."""
        for errors in (self.hooks.errors, self.ram.errors, self.tlb.errors if self.tlb else []):
            if errors:
                error = errors[0]
                errors.clear()
                raise error

    def pool(self, first: int, count: int) -> list[Gpa]:
        """GPAs of `count` frames from frame `first` on."""
        return [Gpa((first + i) << 12) for i in range(count)]

    def close(self) -> None:
        """Frees the CPU, and gives the memory back to the system."""
        self.engine.close()
        self.ram.close()
