# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots an unmodified kernel from its 64-bit entry point, as a KVM guest with memory encryption.

Follows Documentation/arch/x86/boot.rst: identity page tables, RSI = boot_params, RIP = the ELF
file's entry. The tables carry the C-bit, as the decompressor's do. Nothing of the kernel is patched
or replaced; only hardware is emulated (platform.py).

Boot runs without memory hooks, on two plain buffers: three times as fast, and enough, because what
the kernel converts before it calls `rest_init` it also initialises. The hooks come afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, PMD_SIZE, Gpa, Gva
from guestemu.abi.cpuid import (
    KVM_FEATURE_CLOCKSOURCE2,
    KVM_FEATURE_HC_MAP_GPA_RANGE,
    KVM_FEATURE_MIGRATION_CONTROL,
    KVM_FEATURE_NOP_IO_DELAY,
)
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import SEV_STATUS_SEV_ES, SEV_STATUS_SEV_SNP
from guestemu.abi.x86 import PTE_RW, PTE_USER, RFLAGS_FIXED, Mode
from guestemu.guest.linux import acpi
from guestemu.guest.linux.bootparams import (
    E820_ACPI,
    E820_NVS,
    MemoryRange,
    make_boot_params,
    pc_memory_map,
)
from guestemu.guest.linux.ccblob import launch_pages
from guestemu.guest.linux.exit_sites import raise_exits
from guestemu.guest.linux.kernel import KERNEL_MAP, Kernel
from guestemu.guest.linux.platform import Console, GuestPlatform
from guestemu.guest.linux.printk import KernelLog
from guestemu.machine import layout
from guestemu.machine.exits import BudgetExhausted, Exit, ExitHandler, Shutdown, Trap
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.modes import build_tables
from guestemu.machine.paging import PageTables
from guestemu.machine.snp_psc import psc_kernel

STOP_AT: Final = "rest_init"

BOOT_PARAMS: Final = 0x20000
COMMAND_LINE: Final = 0x21000
TABLES: Final = 0x22000
TABLE_PAGES: Final = 8
LAUNCH_PAGES: Final = 0x2A000
LOADER_END: Final = 0x30000
IDENTITY: Final = 1 << 30

DEFAULT_COMMAND_LINE: Final = (
    "earlyprintk=ttyS0,115200 keep_bootcon nokaslr swiotlb=2048 mitigations=off init_on_alloc=0 "
    "acpi=off noapic nolapic nosmp lpj=4000000 panic=-1 loglevel=8 random.trust_cpu=on"
)
"""Small swiotlb and no clearing of free pages: clearing memory takes most of a boot otherwise."""

INITCALLS: Final = (
    "cryptomgr.notests initcall_blacklist=jent_mod_init,cmos_init,print_s5_reset_status_mmio"
)
"""Appended where a boot goes on behind `STOP_AT`: without self-tests of cryptography and a wait for
a clock, which take minutes under emulation (fact U10), and without AMD's reset status (6.17), which
is read from registers that this machine has not."""

KVM_FEATURES: Final = (
    1 << KVM_FEATURE_CLOCKSOURCE2
    | 1 << KVM_FEATURE_HC_MAP_GPA_RANGE
    | 1 << KVM_FEATURE_MIGRATION_CONTROL
)
"""EAX of CPUID 0x40000001 for SEV and SEV-ES guests, as a VMM that can migrate them sets it."""

SNP_KVM_FEATURES: Final = 1 << KVM_FEATURE_CLOCKSOURCE2
"""The same for an SNP guest. KVM sets bits 16 and 17 for no guest, user space for none that cannot
be migrated: page-state changes are an SNP guest's only notifications (A48, N22)."""

TDX_KVM_FEATURES: Final = 1 << KVM_FEATURE_NOP_IO_DELAY
"""The same for a TD: bit 17 makes it execute VMMCALL, which is #UD there (T32); kvmclock's page is
private memory, which the host cannot write (T33)."""

_STARTUP: Final = "__pi_"
"""In front of the names of arch/x86/boot/startup, which runs before addresses are relocated; some
functions of memory encryption are there in 7.x."""
_PAT: Final = "arch_io_reserve_memtype_wc"
"""A function of CONFIG_X86_PAT. Without it there is no write-protected memory type, early_memremap_
encrypted_wp() maps nothing, and early_set_memory_decrypted() of a guest's per-CPU pages is a BUG in
__sme_early_enc_dec() (seen on 7.3.4); Kconfig allows such a kernel."""
BOOT_BUDGET: Final = 400_000_000
MIN_MEMORY: Final = 96
_CONSOLE_OPTIONS: Final = "CONFIG_PRINTK=y, CONFIG_EARLY_PRINTK=y and CONFIG_SERIAL_8250_CONSOLE=y"
LAST_LINES: Final = 12
"""Of a kernel that does not boot."""


class MemoryBefore(msgspec.Struct, frozen=True):
    """Memory as a kernel finds it: the e820 map (None: a plain PC's), and what pages hold by frame
    number, as an access with C=1 reads it. The boot loader's and the kernel's own are written over.
    """

    map: tuple[MemoryRange, ...] | None = None
    pages: Mapping[int, bytes] = msgspec.field(default_factory=dict)


class BootedKernel(msgspec.Struct):
    """A kernel that ran. `end` is the exit that ended the boot, a `Trap` where it arrived at the
    function `until`; `seconds` is what it took."""

    kernel: Kernel
    machine: Machine
    platform: GuestPlatform
    console: Console
    end: Exit
    seconds: float
    until: str = STOP_AT

    @property
    def rip(self) -> int:
        """Where the vCPU stands."""
        return self.machine.current.read_register("rip")


def build_machine(
    kernel: Kernel,
    config: MachineConfig,
    console: Console,
    load: bool = True,
    memory: MemoryBefore | None = None,
    kvm_features: int | None = None,
) -> tuple[Machine, GuestPlatform]:
    """A machine with the kernel loaded, its vCPU in 64-bit mode before the first instruction.

    Without `load` the kernel's segments are left out (a snapshot brings them); `memory` is empty
    unless given; `kvm_features` is EAX of CPUID 0x40000001, by default what a VMM shows a guest of
    this kind. Raises `InputError` for a memory size that the kernel does not fit in.
    """
    memory = memory or MemoryBefore()
    size = config.frames * PAGE_SIZE
    needed = kernel.segments.extent
    if size < max(MIN_MEMORY << 20, needed + PMD_SIZE):
        raise InputError(
            f"memory {size >> 20}M: {kernel.name} needs at least "
            f"{max(MIN_MEMORY, (needed >> 20) + 2)}M"
        )
    machine = Machine(config)
    ram = machine.ram
    for gfn, page in memory.pages.items():
        if gfn >= LOADER_END // PAGE_SIZE:
            ram.private[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE] = page
    for segment in kernel.segments.parts if load else ():
        data = segment.data.ljust(segment.size, b"\0") if memory.pages else segment.data
        ram.private[segment.physical : segment.physical + len(data)] = data
    pool = iter(machine.pool(TABLES // PAGE_SIZE, TABLE_PAGES))
    tables = PageTables(ram, machine.bit, next(pool), pool)
    for address in range(0, min(size, IDENTITY), PMD_SIZE):
        flags = PTE_RW if address else PTE_RW | PTE_USER
        tables.map(Gva(address), Gpa(address), PMD_SIZE, flags=flags)
    build_tables(ram, {})
    machine.boot(tables.cr3)
    is_snp = bool(config.sev_status & SEV_STATUS_SEV_SNP)
    if kvm_features is None:
        kvm_features = SNP_KVM_FEATURES if is_snp else KVM_FEATURES
        kvm_features = TDX_KVM_FEATURES if config.tdx else kvm_features
    platform = GuestPlatform(machine, console, kvm_features)
    _install_sites(kernel, machine, platform)
    if platform.td is not None:
        raise_exits(machine, platform.td)
        platform.td.reflect_msrs()
    setup_data = 0
    if is_snp:
        setup_data = LAUNCH_PAGES
        pages = launch_pages(LAUNCH_PAGES, platform.cpuid)
        ram.private[LAUNCH_PAGES : LAUNCH_PAGES + len(pages)] = pages
    ranges = memory.map or pc_memory_map(size, LOADER_END)
    rsdp = 0
    if config.vcpus > 1:
        rsdp = acpi.AT
        ram.private[rsdp : rsdp + acpi.SIZE] = acpi.acpi_tables(config.vcpus, config.tdx)
        if platform.sev is not None:
            platform.sev.jump_table = acpi.MAILBOX
        of_acpi = (
            MemoryRange(rsdp, acpi.SIZE, E820_ACPI),
            MemoryRange(acpi.MAILBOX, PAGE_SIZE, E820_NVS),
        )
        ranges = tuple(sorted([*ranges, *of_acpi], key=lambda part: part.start))
    ram.private[BOOT_PARAMS : BOOT_PARAMS + PAGE_SIZE] = make_boot_params(
        ranges, COMMAND_LINE, setup_data, rsdp
    )
    return machine, platform


def _install_sites(kernel: Kernel, machine: Machine, platform: GuestPlatform) -> None:
    for site in kernel.sites:
        for address in (site.address, site.address - KERNEL_MAP):
            if site.mnemonic in {"rdmsr", "wrmsr"}:
                machine.hooks.add_msr_site(address, site.mnemonic == "wrmsr")
            elif site.mnemonic == "rdtsc":
                platform.hook_tsc(address)


def boot_kernel(
    kernel: Kernel,
    config: MachineConfig,
    handler: ExitHandler,
    until: str = STOP_AT,
    command_line: str = DEFAULT_COMMAND_LINE,
    console: Console | None = None,
    budget: int = BOOT_BUDGET,
    memory: MemoryBefore | None = None,
    kvm_features: int | None = None,
    kvm: str = "",
    watch: Callable[[Machine], None] | None = None,
) -> BootedKernel:
    """Boots `kernel` to the function `until`.

    `handler` answers hypercalls and MSRs (an `ExitHandler`); `memory` is what the kernel finds, by
    default nothing; `kvm_features` as in `build_machine`; `kvm` names the kernel whose KVM answers
    an SNP guest ("": of no particular one); `watch` gets the machine before its first instruction.
    The result's `end` is `Trap` at `until` if it got there. Raises `InputError` where the
    kernel lacks `until`.
    """
    console = console or Console()
    target = kernel.address(until)
    machine, platform = build_machine(
        kernel, config, console, memory=memory, kvm_features=kvm_features
    )
    if platform.sev is not None:
        platform.sev.kernel = psc_kernel(kvm)
    if watch is not None:
        watch(machine)
    text = command_line.encode()[:2047] + b"\0"
    machine.ram.private[COMMAND_LINE : COMMAND_LINE + len(text)] = text
    platform.hook_stop(target)
    panic = kernel.symbols.get("panic", target)
    if panic != target:
        platform.hook_stop(panic)
    machine.hooks.handler = handler
    vcpu = machine.current
    vcpu.enter(Mode.LONG64, 0)
    for name, value in (
        ("rsi", BOOT_PARAMS),
        ("rsp", layout.KERNEL_STACK),
        ("rflags", RFLAGS_FIXED),
    ):
        vcpu.write_register(name, value)
    start = time.perf_counter()
    with machine.hooks.rip_by_block():
        end = vcpu.run(kernel.entry, budget)
    if isinstance(end, Trap) and end.rip == panic != target:
        text = vcpu.read_memory(Gva(vcpu.read_register("rdi")), 64) or b""
        message = text.partition(b"\0")[0].decode("ascii", "replace").strip()
        end = Shutdown(f"kernel panic: {message}", panic)
    seconds = time.perf_counter() - start
    return BootedKernel(kernel, machine, platform, console, end, seconds, until)


def last_lines(booted: BootedKernel, count: int = LAST_LINES) -> list[str]:
    """The last lines that the kernel printed: to its log, else to its console."""
    log = KernelLog(booted.kernel, booted.machine.ram)
    lines = [line for record in log.records() for line in record.text.splitlines()]
    return (lines or booted.console.text.splitlines())[-count:]


def kind_of(config: MachineConfig) -> str:
    """The guest kind of a machine, as in program headers."""
    if config.tdx:
        return "tdx"
    if config.sev_status & SEV_STATUS_SEV_SNP:
        return "snp"
    return "es" if config.sev_status & SEV_STATUS_SEV_ES else "sev"


def lacking(kernel: Kernel, sev: str) -> tuple[str, ...]:
    """What a kernel would need for the guest kind `sev` (as in program headers) and does not have,
    by its functions: the option that brings it."""
    has = kernel.symbols.keys()
    if sev == "tdx":
        return () if "tdx_early_init" in has else ("CONFIG_INTEL_TDX_GUEST=y (5.19 and later)",)
    has_sev = not has.isdisjoint({"sme_enable", f"{_STARTUP}sme_enable"})
    has_snp = not has.isdisjoint({"snp_init", f"{_STARTUP}snp_init"})
    rules = (
        (has_sev, "CONFIG_AMD_MEM_ENCRYPT=y"),
        ("kvm_guest_init" in has, "CONFIG_KVM_GUEST=y"),
        (_PAT in has, "CONFIG_X86_PAT=y, CONFIG_MTRR=y"),
        (
            sev != "snp" or has_snp,
            "SEV-SNP guest code (5.19 and later, with CONFIG_AMD_MEM_ENCRYPT=y)",
        ),
    )
    return tuple(text for is_there, text in rules if not is_there)


def describe_end(booted: BootedKernel) -> str:
    """One line that says how a boot ended; of one that failed also what the kernel lacks, if that
    is plain, and what it said last."""
    if isinstance(booted.end, Trap):
        return f"reached {booted.until}"
    where = booted.kernel.symbol_at(booted.rip)
    if isinstance(booted.end, BudgetExhausted):
        text = f"budget used up in {where}"
    elif isinstance(booted.end, Shutdown):
        text = booted.end.reason
    else:
        text = f"ended in {where}: {booted.end}"
    missing = lacking(booted.kernel, kind_of(booted.machine.config))
    if missing:
        text += f"; the kernel lacks {', '.join(missing)}"
    last = last_lines(booted, 1)
    if not last:
        return f"{text}; it printed nothing ({_CONSOLE_OPTIONS} show more)"
    return f"{text}; its last line: {last[0].strip()}"
