# SPDX-License-Identifier: GPL-2.0-or-later
"""The snippet guest: our own x86-64 code doing what one kernel generation does.

The code is `snippet-GENERATION.elf`; this class is the boot loader and the caller. It lays out
memory, builds the page tables, fills the info block, and calls functions by their symbols.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import (
    PAGE_SIZE,
    PMD_SIZE,
    PUD_SIZE,
    Gpa,
    Gva,
    to_signed,
)
from guestemu.abi.cpuid import (
    KVM_FEATURE_HC_MAP_GPA_RANGE,
    KVM_FEATURE_MIGRATION_CONTROL,
    KVM_FEATURE_NOP_IO_DELAY,
)
from guestemu.abi.errno import ENOSYS
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.abi.msrs import SEV_STATUS_SEV_SNP
from guestemu.abi.regions import REGIONS, Instruction, Region
from guestemu.abi.x86 import PTE_PRESENT, PTE_PSE, Mode
from guestemu.events.exits import MapGpaRangeExit
from guestemu.guest.base import CallOutcome, Guest, GuestOops, PlacedRegion, RawRegisters
from guestemu.guest.dma.emulated import GuestDma
from guestemu.guest.linux.es import SevEs, attach_sev
from guestemu.guest.snippet.elf import (
    SNP_GENERATION,
    SNP_IMAGE,
    TDX_GENERATION,
    TDX_IMAGE,
    UD2_SIZE,
    SnippetImage,
    assembly_of,
    load_snippet,
)
from guestemu.guest.snippet.generations import GENERATIONS
from guestemu.guest.snippet.info import E820_RAM, NEVER, InfoBlock
from guestemu.guest.snippet.memory_map import (
    BSS_DECRYPTED,
    DIRECT_MAP,
    DMA_ARENA,
    REGION_D,
    REGION_G,
    REGION_L,
    SCRATCH,
    STACK_SIZE,
    STACKS,
    VMAP,
    build_page_tables,
)
from guestemu.guest.stubs import RawStubs
from guestemu.guest.td import Td
from guestemu.guest.td_stub import TdStub
from guestemu.machine.cpuid import CpuidLeaf
from guestemu.machine.exits import Halt, Trap
from guestemu.machine.launch import Entry
from guestemu.machine.leafmap import LeafMap, Window
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.modes import build_tables
from guestemu.machine.psc_lies import LIES
from guestemu.machine.rmp import Rmp
from guestemu.machine.snp_psc import psc_kernel

MAX_VCPUS: Final = 8
MIN_MEMORY: Final = 32
LARGE_MEMORY: Final = 4096
MAX_MEMORY: Final = 1 << 20
MAX_SNP_MEMORY: Final = 8192
"""The RMP keeps an entry of its own for every frame."""

_FEATURE_SEV_LIVE_MIGRATION: Final = 14
"""The patch set's own feature bit (facts, constant table); bit 14 is ASYNC_PF_INT today."""
_KVM_FEATURES: Final = (
    1 << _FEATURE_SEV_LIVE_MIGRATION
    | 1 << KVM_FEATURE_HC_MAP_GPA_RANGE
    | 1 << KVM_FEATURE_MIGRATION_CONTROL
)
_TD_KVM_FEATURES: Final = 1 << KVM_FEATURE_NOP_IO_DELAY
_NO_CPUID: Final = CpuidLeaf(0, 0, 0, 0)
_WRMSR: Final = b"\x0f\x30"
_MAX_WARNINGS: Final = 64
_KERNEL: Final = (Mode.LONG64, 0)
_NO_STATE: Final = (Mode.LONG64, -1)
"""Unlike every mode and level: the next start flushes the TLB."""


class SnippetGuest(Guest):
    """A snippet of one kernel generation ("5.10", "2020", "5.17", "6.1", "6.12", "7.3").

    `config` gives memory, view bit and vCPUs, and makes it a TD or an SNP guest ("6.12" and "7.3");
    `budget` bounds each
    operation in basic blocks; `image`
    is other code than the generation's own, with its symbols.
    Raises `InputError` for a configuration that a snippet cannot have.
    """

    def __init__(
        self,
        generation: str,
        config: MachineConfig,
        budget: int = 1_000_000,
        image: SnippetImage | None = None,
    ) -> None:
        _check(config, generation)
        image = image or load_snippet(image_name(generation, config))
        self.name = f"snippet:{generation}"
        self.generation = generation
        self.budget = budget
        self.direct_map = Gva(DIRECT_MAP)
        self.machine = Machine(config)
        if config.tdx:
            self.td = Td(self.machine, lambda _leaf, _sub: _NO_CPUID)
        self.sev = attach_sev(self.machine, lambda _leaf, _sub: _NO_CPUID)
        self._symbols = image.symbols
        self._dma: GuestDma | None = None
        self._place_regions()
        tables, self._free_table = build_page_tables(self.machine)
        self._tables = tables
        self._load(image)
        self.machine.boot(tables.cr3)
        self._context = self.machine.modes.context(Mode.LONG64, 0)
        alias = self.regions[Region.V]
        self.leaf_map = LeafMap(
            self.machine.ram,
            tables.root,
            self.machine.bit,
            Window(Gva(DIRECT_MAP), 0, config.frames),
            Window(alias.gva, REGION_D // PAGE_SIZE, alias.pages),
        )
        launcher = self.machine.launcher
        self._arguments = launcher.entry(("rdi", "rsi", "rdx", "rcx", "rsp"))
        self._arguments.use(self._context)
        self._ended = launcher.ended
        self._return_rip = self._symbols["guest_return"] + 1
        self._oops_rip = self._symbols["guest_oops"] + 1
        self._warnings = image.warnings
        self._state = _KERNEL
        if self.td is not None:
            self.td_stub = TdStub(self.machine, self._switch)
            self.td.watch()
        if self.sev is not None:
            self._begin_snp(self.sev)
        self.machine.checkpoint()

    # Boot -------------------------------------------------------------------------------------

    def _place_regions(self) -> None:
        def direct(region: Region, gpa: int) -> PlacedRegion:
            return PlacedRegion(Gva(DIRECT_MAP + gpa), Gpa(gpa), REGIONS[region].pages)

        self.regions = {
            Region.D: direct(Region.D, REGION_D),
            Region.L: direct(Region.L, REGION_L),
            Region.V: PlacedRegion(Gva(VMAP), Gpa(REGION_D), REGIONS[Region.V].pages),
        }
        frames = self.machine.config.frames
        if frames * PAGE_SIZE >= LARGE_MEMORY << 20:
            self.regions[Region.G] = direct(Region.G, REGION_G)
        self.dma_frames = range(DMA_ARENA // PAGE_SIZE, min(frames, PUD_SIZE // PAGE_SIZE))

    def _load(self, image: SnippetImage) -> None:
        machine = self.machine
        ram = machine.ram
        for segment in image.segments:
            ram.write(segment.address, segment.data)
            if machine.cache is not None and segment.is_code:
                machine.cache.watch(segment.data, segment.address)
        build_tables(ram, dict(enumerate(image.exceptions)))
        self._stubs = RawStubs(machine, self._switch)
        hooks = machine.hooks
        for site in image.msr_sites:
            hooks.add_msr_site(site, is_write=ram.read(Gpa(site), 2) == _WRMSR)
        hooks.traps.update(image.warnings)
        for vcpu in range(machine.config.vcpus):
            ram.write_u64(Gpa(_stack_slot(vcpu)), self._symbols["guest_return"])
        self.info = InfoBlock(ram, image.info)
        self._fill_info()

    def _fill_info(self) -> None:
        machine = self.machine
        size = machine.config.frames * PAGE_SIZE
        vmap = self.regions[Region.V]
        is_snp = bool(machine.config.sev_status & SEV_STATUS_SEV_SNP)
        fields = {
            "page_offset_base": DIRECT_MAP,
            "cbit_mask": machine.pte_cbit,
            "pgd": DIRECT_MAP + self._tables.root,
            "max_pfn": machine.config.frames,
            "pt_pool": self._free_table,
            "pt_pool_left": (BSS_DECRYPTED - self._free_table) // PAGE_SIZE,
            "pt_fail_after": NEVER,
            "vmap_start": vmap.gva,
            "vmap_end": vmap.gva + vmap.pages * PAGE_SIZE,
            "scratch_source": SCRATCH,
            "scratch_target": SCRATCH + PAGE_SIZE,
            "coherent": int(machine.config.coherent),
            "notify_enabled": int(not is_snp),
            "kvm_features": _features(machine.config),
            "bss_decrypted_start": DIRECT_MAP + BSS_DECRYPTED,
            "bss_decrypted_end": DIRECT_MAP + BSS_DECRYPTED + PMD_SIZE,
        }
        for name, value in fields.items():
            self.info.write(name, value)
        self.info.write_e820(((0, 0xA0000, E820_RAM), (0x100000, size - 0x100000, E820_RAM)))

    def _begin_snp(self, sev: SevEs) -> None:
        """What early boot of an SNP guest leaves: .bss..decrypted is shared in the RMP and for the
        host, which page-state changes told (N18), and its first page is the GHCB."""
        frame, pages = BSS_DECRYPTED // PAGE_SIZE, PMD_SIZE // PAGE_SIZE
        write = self.machine.ram.write_u64
        write(Gpa(self._symbols["snp_ghcb"]), DIRECT_MAP + BSS_DECRYPTED)
        write(Gpa(self._symbols["snp_ghcb_gpa"]), BSS_DECRYPTED)
        self.machine.ram.write(Gpa(BSS_DECRYPTED), bytes(PAGE_SIZE), private=False)
        sev.register_ghcb(Gpa(BSS_DECRYPTED))
        if sev.snp is not None:
            sev.snp.convert(frame, pages, private=False)
            sev.snp.enforce()
        self.machine.modes.route_interrupts(self.machine.ram, self._symbols["spurious_interrupt"])
        told = (BSS_DECRYPTED, pages, 0, 0)
        self.boot_exits = (MapGpaRangeExit(KVM_HC_MAP_GPA_RANGE, told, 0, 0, origin="psc-msr"),)

    # Running ----------------------------------------------------------------------------------

    @property
    def snp(self) -> SevEs | None:
        """KVM and the hardware below an SNP guest."""
        sev = self.sev
        return None if sev is None or sev.snp is None else sev

    @property
    def rmp(self) -> Rmp | None:
        """The reverse map table of an SNP guest."""
        sev = self.sev
        return None if sev is None or sev.snp is None else sev.snp.rmp

    def use_kvm(self, kernel: str, repaired: frozenset[str] = frozenset()) -> None:
        """See `Guest`."""
        super().use_kvm(kernel, repaired)
        if self.sev is not None:
            self.sev.use(psc_kernel(kernel), repaired)

    def use_lie(self, name: str) -> None:
        """See `Guest`."""
        super().use_lie(name)
        if self.sev is not None:
            self.sev.lie = LIES.get(name)

    def lie_until_reset(self, name: str) -> None:
        """See `Guest`."""
        if self.sev is not None:
            self.sev.lie_until_reset(LIES[name])

    def raw_psc(
        self, words: Sequence[int], header: int, scratch: int = 0, length: int = 2032
    ) -> CallOutcome:
        """See `Guest`."""
        sev = self.sev
        if sev is None or sev.snp is None:
            return CallOutcome(-ENOSYS)
        return sev.request_by_hand(words, header, scratch, length)

    def reset(self) -> None:
        """Back to the state after boot."""
        self.machine.rollback()
        self.leaf_map.rollback()
        self._dma = None
        if self.machine.current.index:
            self.machine.activate(0)

    @property
    def notifies(self) -> bool:
        """False for 5.10, which converts without a notification (A10)."""
        return GENERATIONS[self.generation].notifies

    def call(self, function: str, *arguments: int) -> CallOutcome:
        """Calls a function of the snippet; the value is its int result."""
        outcome = self._call(function, arguments)
        if outcome.value is None:
            return outcome
        return CallOutcome(to_signed(outcome.value, 32), None, outcome.warnings)

    def _call(self, function: str, arguments: tuple[int, ...]) -> CallOutcome:
        entry: Entry | None = self._arguments
        values = self._arguments.values
        for index, argument in enumerate(arguments):
            values[index] = argument & 0xFFFF_FFFF_FFFF_FFFF
        vcpu = self.machine.current
        values[4] = slot = _stack_slot(vcpu.index)
        if self.machine.interventions is not None:  # an event at the last HLT has overwritten it
            self.machine.ram.write_u64(Gpa(slot), self._symbols["guest_return"])
        self._switch(_KERNEL)
        vcpu.deliver = True
        rip = self._symbols[function]
        warnings: tuple[str, ...] = ()
        while True:
            end = vcpu.run(rip, self.budget, entry)
            if type(end) is Halt:
                if end.rip == self._return_rip:
                    return CallOutcome(self._ended[1], None, warnings)
                if end.rip == self._oops_rip:
                    return CallOutcome(None, self._oops(), warnings)
            elif type(end) is Trap and len(warnings) < _MAX_WARNINGS:
                name = self._warnings.get(end.rip)
                if name is not None:
                    warnings += (name,)
                    rip = end.rip + UD2_SIZE
                    entry = None
                    continue
            return CallOutcome(None, end, warnings)

    @property
    def kernel_call(self) -> tuple[Entry, int, int]:
        """How `call` starts the CPU, the RIP at which a function has returned, the stack pointer of
        vCPU 0; the arguments are the entry's values in order."""
        return self._arguments, self._return_rip, _stack_slot(0)

    @property
    def raw_stubs(self) -> RawStubs:
        """The stubs of the raw instructions."""
        return self._stubs

    @property
    def symbols(self) -> Mapping[str, int]:
        """Addresses of the snippet's functions by name."""
        return self._symbols

    def forget_state(self) -> None:
        """After other code started the CPU, in any mode and level."""
        self._state = _NO_STATE

    def _oops(self) -> GuestOops:
        read = self.info.read
        return GuestOops(
            read("oops_vector"), read("oops_error_code"), read("oops_rip"), read("oops_cr2")
        )

    def _switch(self, state: tuple[Mode, int]) -> None:
        """The next start is in this mode and level: the TLB is flushed where it was another."""
        if state != self._state:
            self._state = state
            self.machine.engine.flush_tlb()

    def take_over(self, other: SnippetGuest) -> None:
        """After a migration from `other`: what of the guest is kept outside of its RAM, the page
        allocator's state (a kernel's is in its pages)."""
        self._state = _NO_STATE
        self._dma = copy.deepcopy(other._dma, {id(other): self})

    # Kernel functions -------------------------------------------------------------------------

    def set_memory_encrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return self.call("set_memory_encrypted", gva, pages)

    def set_memory_decrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """See `Guest`."""
        return self.call("set_memory_decrypted", gva, pages)

    def early_set_memory_encrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return self.call("early_set_memory_encrypted", gva, size)

    def early_set_memory_decrypted(self, gva: Gva, size: int) -> CallOutcome:
        """See `Guest`."""
        return self.call("early_set_memory_decrypted", gva, size)

    def memset(self, gva: Gva, value: int, size: int) -> CallOutcome:
        """See `Guest`."""
        return self.call("guest_memset", gva, value, size)

    def load(self, gva: Gva) -> CallOutcome:
        """See `Guest`."""
        return self._call("guest_load8", (gva,))

    def touch_cbit(self, gva: Gva, private: bool) -> CallOutcome:
        """See `Guest`."""
        return self.call("guest_set_cbit", gva, int(private))

    def kvm_init_platform(self, efi: bool) -> CallOutcome:
        """See `Guest`."""
        return self.call("kvm_init_platform", int(efi))

    def kvm_guest_cpu_offline(self) -> CallOutcome:
        """See `Guest`."""
        return self.call("kvm_guest_cpu_offline")

    def set_memory_enc_stop_conversion(self) -> CallOutcome:
        """See `Guest`."""
        if "set_memory_enc_stop_conversion" not in self._symbols:
            return CallOutcome(-ENOSYS)
        return self.call("set_memory_enc_stop_conversion")

    # Raw instructions -------------------------------------------------------------------------

    def raw_hypercall(
        self, instruction: Instruction, registers: RawRegisters, mode: Mode, cpl: int
    ) -> CallOutcome:
        """See `Guest`."""
        return self._stubs.hypercall(instruction, registers, mode, cpl, self.budget)

    def raw_rdmsr(self, index: int, mode: Mode, cpl: int) -> CallOutcome:
        """See `Guest`."""
        return self._stubs.rdmsr(index, mode, cpl, self.budget)

    def raw_wrmsr(self, index: int, value: int, mode: Mode, cpl: int) -> CallOutcome:
        """See `Guest`."""
        return self._stubs.wrmsr(index, value, mode, cpl, self.budget)

    # Coherent memory ---------------------------------------------------------------------------

    def _coherent(self) -> GuestDma:
        if self._dma is None:
            self._dma = GuestDma(self)
        return self._dma

    def dma_alloc_coherent(self, size: int, may_block: bool) -> CallOutcome:
        """See `Guest`."""
        return self._coherent().alloc(size, may_block)

    def dma_free_coherent(self, gpa: Gpa) -> CallOutcome:
        """See `Guest`."""
        return self._coherent().free(gpa)

    def free_frames(self) -> bitarray | None:
        """See `Guest`."""
        return None if self._dma is None else self._dma.free_frames()

    # Faults -----------------------------------------------------------------------------------

    def fail_split(self, after: int) -> None:
        """See `Guest`."""
        self.info.write("pt_fail_after", after)

    def clear_faults(self) -> None:
        """See `Guest`."""
        self.info.write("pt_fail_after", NEVER)

    def edit_entry(self, gva: Gva, clear_all: bool) -> bool:
        """See `Guest`."""
        leaf = self._tables.walk(gva)
        if leaf.level != 1 or not leaf.is_present or leaf.entry & PTE_PSE:
            return False
        ram = self.machine.ram
        ram.write_u64(leaf.entry_gpa, 0 if clear_all else leaf.entry & ~PTE_PRESENT)
        self.leaf_map.reread(leaf.entry_gpa)
        self.machine.engine.flush_tlb()
        return True


def _stack_slot(vcpu: int) -> int:
    """Where a call's return address lies on the stack of a vCPU."""
    return STACKS + STACK_SIZE * (vcpu + 1) - 8


def image_name(generation: str, config: MachineConfig) -> str:
    """The name of the code that `generation` runs as the guest kind of `config`."""
    if config.tdx:
        return TDX_IMAGE
    return SNP_IMAGE if config.sev_status & SEV_STATUS_SEV_SNP else generation


def _features(config: MachineConfig) -> int:
    """EAX of CPUID 0x40000001; a guest that cannot be migrated is offered no notifications."""
    if config.tdx:
        return _TD_KVM_FEATURES
    return 0 if config.sev_status & SEV_STATUS_SEV_SNP else _KVM_FEATURES


def _check(config: MachineConfig, generation: str) -> None:
    mib = config.frames * PAGE_SIZE >> 20
    is_snp = bool(config.sev_status & SEV_STATUS_SEV_SNP)
    most = MAX_SNP_MEMORY if is_snp else MAX_MEMORY
    if not MIN_MEMORY <= mib <= most or config.frames * PAGE_SIZE % PMD_SIZE:
        kind = "an SNP snippet guest" if is_snp else "a snippet guest"
        raise InputError(f"memory {mib}M: {kind} takes {MIN_MEMORY}M to {most}M, in steps of 2M")
    if not 1 <= config.vcpus <= MAX_VCPUS:
        raise InputError(f"vcpus {config.vcpus}: a snippet guest takes 1 to {MAX_VCPUS}")
    if is_snp and assembly_of(generation) != SNP_GENERATION:
        raise InputError(
            f"sev snp: snippet:{generation} has no code for SNP; take snippet:{SNP_GENERATION}"
        )
    if config.tdx and assembly_of(generation) != TDX_GENERATION:
        raise InputError(
            f"sev tdx: snippet:{generation} has no code for a TD; take snippet:{TDX_GENERATION}"
        )
    if config.cbit is None:
        raise InputError("a snippet guest needs a C-bit")
