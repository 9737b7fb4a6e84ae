# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests share for DMA: is it cleared, how long does it live, when is it set up: C9 to C12.

Measured on the memory of guests (`guestemu.dma.clearing`), on traces recorded from a Linux 6.12
guest with virtio, NVMe, AHCI, e1000 and xHCI, on the exits of booting kernels, and on drivers of
kernels in user space (real_drivers.py). Facts A35, A36, A.9, B7, B8, B10, B11.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.msrs import MSR_KVM_MIGRATION_CONTROL
from guestemu.dma.clearing import BUFFER_BYTES, Clearing, ClearingPath
from guestemu.dma.model import ModelRun
from guestemu.dma.patterns import parse_patterns, pattern_events
from guestemu.dma.report import DmaReport
from guestemu.dma.source import reader_of
from guestemu.events.exits import HypercallExit
from guestemu.guest.linux.kernel import KERNEL_MAP
from guestemu.study.claims.claim import Claim, Lab, Need
from guestemu.study.claims.dma_plots import boot_plot, lifetime_plot, rewritten_plot, sharing_plots
from guestemu.study.claims.kernels import CalledKernel
from guestemu.study.claims.real_drivers import DriverCounts, driver_run
from guestemu.study.claims.result import ClaimResult, ClaimWitness, Evidence, decide

SNIPPETS: Final = ("snippet:5.10", "snippet:6.1", "snippet:6.12")
TRACES: Final = ("boot", "io", "churn")
_MODEL: Final = "6.12"
_MODEL_MEMORY: Final = 1024
_WORK: Final = "legacy:scenario=io,commands=100"
_READ: Final = "pages that hold one byte over and over, read through their new view"
_IO_PHASES: Final = frozenset({"io", "mkfs"})


def paths_of(lab: Lab) -> dict[str, tuple[ClearingPath, ...]]:
    """The measured paths of every guest that there is."""
    paths = {}
    for guest in (*SNIPPETS, *lab.kernels):
        paths[guest] = Clearing(guest).paths()
    return paths


def _named(paths: dict[str, tuple[ClearingPath, ...]], name: str) -> list[tuple[str, ClearingPath]]:
    return [(guest, path) for guest, found in paths.items() for path in found if path.name == name]


def _only(paths: Iterable[tuple[str, ClearingPath]], name: str) -> list[ClearingPath]:
    return [path for _, path in paths if path.name == name]


def _is_written(path: ClearingPath) -> bool:
    """Whether the path writes what was asked for: 5.10 converts a power of two of pages (B5)."""
    return path.rewritten >= min(path.pages, BUFFER_BYTES // PAGE_SIZE)


def _evidence(guest: str, path: ClearingPath) -> Evidence:
    direction = "made private" if path.to_private else "shared"
    return Evidence(
        f"{guest}: {path.name}",
        path.rewritten,
        "pages written anew",
        f"of {path.pages} {direction}; {_READ}",
    )


def _driver_runs(lab: Lab) -> list[DriverCounts]:
    """The run of the newest kernel that has one; none where no kernel has."""
    for kernel in reversed(lab.kernels):
        run = driver_run(kernel)
        if run is not None:
            return [run]
    return []


def _cleared(run: DriverCounts) -> Evidence:
    return Evidence(
        f"{run.kernel}: NVMe is bound again: pages of coherent buffers that read as zero",
        run.cleared,
        "pages",
        f"of {run.made_pages}, through the shared view, when the driver gets them",
    )


def pool_clearing(lab: Lab) -> ClaimResult:
    """C9: the atomic pools of kernel/dma/pool.c, the only pool that calls set_memory_decrypted()
    itself. A dma_pool of mm/dmapool.c takes pages from dma_alloc_coherent()."""
    paths = paths_of(lab)
    backing = _named(paths, "dma_alloc_coherent")
    expansion = _named(paths, "atomic pool expansion")
    handed = _named(paths, "atomic pool hand-out")
    buffer_pages = 3
    is_cleared = all(path.rewritten == buffer_pages for _, path in backing)
    is_late = not any(path.rewritten for _, path in expansion)
    return ClaimResult(
        verdict=decide(
            confirmed=is_late and all(path.rewritten for _, path in handed),
            refuted=not is_late,
        ),
        evidence=(
            *(_evidence(*found) for found in (*backing, *expansion, *handed)),
            *map(_cleared, _driver_runs(lab)),
        ),
        guests=tuple(paths),
        witnesses=(
            ClaimWitness(
                "dma_alloc_coherent() of three pages, then the device's view of them",
                "guestemu dma dma-pool --json",
            ),
        ),
        remark=(
            "The pages of an atomic pool are cleared when they are handed out. A dma_pool of "
            "mm/dmapool.c calls dma_alloc_coherent() instead, which clears right after the flip; "
            "5.10 converts a power-of-two number of pages and clears only those asked for."
            if is_cleared
            else ""
        ),
        plots=(rewritten_plot("c9", (*backing, *expansion, *handed)),),
    )


def most_paths_clear(lab: Lab) -> ClaimResult:
    """C10: the paths of table A.9, one by one."""
    paths = paths_of(lab)
    every = [(guest, path) for guest, found in paths.items() for path in found]
    converting = [(guest, path) for guest, path in every if path.name != "atomic pool hand-out"]
    names = tuple(dict.fromkeys(path.name for _, path in converting))
    whole = [name for name in names if all(_is_written(path) for path in _only(converting, name))]
    allocating = _named(paths, "dma_alloc_coherent")
    freeing = _named(paths, "dma_free_coherent")
    runs = _driver_runs(lab)
    allocates_clear = all(path.rewritten >= 3 for _, path in allocating) and all(
        run.cleared == run.made_pages for run in runs
    )
    frees_clear = any(path.rewritten for _, path in freeing)
    return ClaimResult(
        verdict=decide(
            confirmed=allocates_clear and frees_clear,
            refuted=not allocates_clear,
            conditional=allocates_clear and not frees_clear,
        ),
        condition=(
            "the path allocates by dma_alloc_coherent(); its free, the atomic pools' growth, a "
            "driver's own pages and swiotlb since 6.1 write nothing after the change"
        ),
        evidence=(
            Evidence(
                "paths that write what they convert, on every guest that has them",
                len(whole),
                "paths",
                f"of {len(names)}: {', '.join(names)}; these: {', '.join(whole) or 'none'}",
            ),
            *(_evidence(*found) for found in converting),
            *map(_cleared, runs),
        ),
        guests=tuple(paths),
        remark=(
            "A real kernel poisons the unused part of .bss..decrypted when it frees it, after the "
            "change: the section's end is written, though not by the code that converts."
        )
        if any(path.rewritten for _, path in _named(paths, ".bss..decrypted tail"))
        else "",
        plots=(rewritten_plot("c10", converting),),
    )


def recorded(name: str) -> DmaReport:
    """The report of a recorded trace, "boot", "io" or "churn", on the model of 6.12."""
    packed = files("guestemu.study.claims").joinpath("data", f"linux-6.12-q35-{name}.trace.gz")
    text = gzip.decompress(packed.read_bytes())
    run = ModelRun(_MODEL, _MODEL_MEMORY)
    run.steps(reader_of(io.BufferedReader(io.BytesIO(text)), name))
    return run.report()


def _lifetimes_of(run: DriverCounts) -> list[Evidence]:
    grown = sum(run.io_pages.values()) - run.io_asked
    io = "reads and writes of NVMe, virtio-blk and virtio-rng"
    return [
        Evidence(
            f"{run.kernel}: alive when the drivers have bound",
            run.bound,
            "buffers",
            "NVMe and virtio; coherent allocations by the kernel's dma:* events",
        ),
        Evidence(f"{run.kernel}: I/O maps", run.io_maps, "mappings", io),
        Evidence(
            f"{run.kernel}: I/O allocates", run.io_buffers, "buffers", "the driver's dma_pool grows"
        ),
        Evidence(f"{run.kernel}: drivers convert for I/O", run.io_asked, "pages", io),
        Evidence(
            f"{run.kernel}: the atomic pool grows meanwhile",
            grown,
            "pages",
            "in the background, asked for by no driver",
        ),
        Evidence(f"{run.kernel}: NVMe is unbound: freed", run.freed, "buffers", f"of {run.bound}"),
    ]


def lifetimes(lab: Lab) -> ClaimResult:
    """C11: who frees buffers, when, and what I/O converts."""
    runs = _driver_runs(lab)
    reports = {name: recorded(name) for name in TRACES}
    work = ModelRun(_MODEL, _MODEL_MEMORY)
    work.steps(pattern_events(parse_patterns(_WORK)))
    legacy = work.report()
    io_trace = reports["io"].analysis
    costs = {} if io_trace is None else io_trace.by_phase
    of_trace = sum(costs[phase].conversions for phase in _IO_PHASES & costs.keys())
    io_conversions = of_trace + sum(run.io_asked for run in runs)
    per_command = 0 if legacy.analysis is None else legacy.analysis.total.conversions - 1
    kept = sum(report.lifetimes.still_alive for report in reports.values())
    kept += sum(run.bound for run in runs)
    made = sum(report.allocations for report in reports.values())
    made += sum(run.bound + run.io_buffers for run in runs)
    evidence = [
        Evidence(
            f"trace {name}: never freed", report.live_at_end, "buffers", f"of {report.allocations}"
        )
        for name, report in reports.items()
    ]
    evidence += [
        Evidence(
            f"trace churn: lived from {low / 1e9:.3g} s",
            count,
            "buffers",
            "to twice that, then freed",
        )
        for low, count in reports["churn"].lifetime_buckets.items()
    ]
    evidence += [
        Evidence("trace io: during file-system I/O", of_trace, "conversions", "phases io, mkfs"),
        Evidence(
            "a driver that allocates for each command",
            per_command,
            "conversions",
            f"of 100 commands; guestemu dma {_WORK}",
        ),
    ]
    for run in runs:
        evidence += _lifetimes_of(run)
    return ClaimResult(
        verdict=decide(
            confirmed=kept * 2 < made and io_conversions > 0,
            refuted=kept * 2 > made and io_conversions == 0 and per_command == 0,
            conditional=kept * 2 > made and io_conversions == 0 and per_command > 0,
        ),
        condition=(
            "the driver allocates a coherent buffer for each command; the rings and queues of the "
            "traced drivers live as long as the device is bound"
        ),
        evidence=tuple(evidence),
        guests=(f"model:{_MODEL}", *(run.kernel for run in runs)),
        witnesses=(
            ClaimWitness(
                "rings and queues of a probe, then rounds of I/O; the page has the histogram",
                "guestemu dma nvme:scenario=io,rounds=9 --html io.html",
            ),
        ),
        remark=(
            "The evidence is narrow: three traces of 13 seconds each, of one emulated machine "
            "with virtio, NVMe, AHCI, e1000 and xHCI, and seconds of a kernel's own drivers. There "
            "payload goes through swiotlb."
        ),
        plots=(
            lifetime_plot("c11-lifetimes", "churn", reports["churn"]),
            *sharing_plots("c11", reports),
        ),
    )


class BootOrder(msgspec.Struct, frozen=True):
    """How a kernel's boot notifies of .bss..decrypted, counted in its exits (from 0).

    `told` is the hypercall that reports the section as shared, `ready` the write of 1 to
    MIGRATION_CONTROL; None: not made. `later` are hypercalls after `ready` that share. `tail` are
    the pages of the unused end, `returned` those that `mem_encrypt_free_decrypted_mem` reported as
    private. `grown` are pages that the atomic pools shared at run time, after they were used up.
    `levels`: the pages that the host has as shared after each exit.
    """

    kernel: str
    told: int | None
    ready: int | None
    later: int
    tail: int
    returned: int
    grown: int
    levels: tuple[int, ...]


def boot_order(name: str) -> BootOrder:
    """The boot of one kernel, and the end of it that frees the tail."""
    kernel = CalledKernel(name)
    symbols = kernel.guest.calls.kernel.symbols
    section, tail, end = (
        (symbols[symbol] - KERNEL_MAP) >> PAGE_SHIFT
        for symbol in (
            "__start_bss_decrypted",
            "__start_bss_decrypted_unused",
            "__end_bss_decrypted",
        )
    )
    told = ready = None
    later = 0
    shared: set[int] = set()
    levels: list[int] = []
    for number, exit_ in enumerate(kernel.guest.boot_exits):
        args = exit_.args
        is_call = isinstance(exit_, HypercallExit)
        shares = is_call and not args[2] & MAP_GPA_RANGE_ENCRYPTED
        if shares and args[0] >> PAGE_SHIFT == section:
            told = number
        if not is_call and exit_.nr == MSR_KVM_MIGRATION_CONTROL and args[0] & 1:
            ready = number
        later += shares and ready is not None
        levels.append(_report(shared, args) if is_call else len(shared))
    kernel.call("mem_encrypt_free_decrypted_mem")
    freed = kernel.hypercalls
    returned = sum(
        args[1]
        for args in freed
        if args[2] & MAP_GPA_RANGE_ENCRYPTED and tail <= args[0] >> PAGE_SHIFT < end
    )
    levels += [_report(shared, args) for args in freed]
    return BootOrder(
        kernel=name,
        told=told,
        ready=ready,
        later=later,
        tail=end - tail,
        returned=returned,
        grown=run_time_growth(kernel),
        levels=tuple(levels),
    )


def run_time_growth(kernel: CalledKernel) -> int:
    """Pages that the atomic pools share when they run low: atomic allocations until one fails, then
    the work item that the kernel has queued (atomic_pool_work_fn() in kernel/dma/pool.c, B8)."""
    guest = kernel.guest
    guest.reset()
    while (guest.dma_alloc_coherent(PAGE_SIZE, may_block=False).value or -1) > 0:
        pass
    kernel.call("atomic_pool_work_fn", 0)
    grown = sum(args[1] for args in kernel.hypercalls if not args[2] & MAP_GPA_RANGE_ENCRYPTED)
    guest.reset()
    return grown


def _report(shared: set[int], args: Sequence[int]) -> int:
    """A hypercall changes what the host has as shared; the number of pages then."""
    first = args[0] >> PAGE_SHIFT
    pages = range(first, first + args[1])
    if args[2] & MAP_GPA_RANGE_ENCRYPTED:
        shared.difference_update(pages)
    else:
        shared.update(pages)
    return len(shared)


def boot_regions(lab: Lab) -> ClaimResult:
    """C12: the regions that stay shared, in the order a kernel's boot reports them. Kernels before
    5.16 report nothing, so they say nothing about the claim."""
    everything = [boot_order(name) for name in lab.kernels]
    boots = [boot for boot in everything if boot.told is not None]
    silent = ", ".join(boot.kernel for boot in everything if boot.told is None)
    is_told = all(
        boot.told is not None and boot.ready is not None and boot.told < boot.ready
        for boot in boots
    )
    is_freed = all(boot.tail and boot.returned == boot.tail for boot in boots)
    grows = all(boot.grown for boot in boots)
    evidence: list[Evidence] = []
    if silent:
        evidence.append(Evidence("kernels that report nothing, left out", silent))
    for boot in boots:
        how = "its number among the exits of the boot, from 0"
        ready = "never" if boot.ready is None else f"exit {boot.ready}"
        evidence += [
            Evidence(f"{boot.kernel}: .bss..decrypted reported", f"exit {boot.told}", "", how),
            Evidence(f"{boot.kernel}: MIGRATION_CONTROL = 1", ready, "", how),
            Evidence(
                f"{boot.kernel}: regions reported as shared after that",
                boot.later,
                "hypercalls",
                "per-CPU data and swiotlb",
            ),
            Evidence(
                f"{boot.kernel}: unused end reported as private",
                boot.returned,
                "pages",
                f"of {boot.tail}, one by one; mem_encrypt_free_decrypted_mem()",
            ),
            Evidence(
                f"{boot.kernel}: shared by the growth of the atomic pools",
                boot.grown,
                "pages",
                "atomic_pool_work_fn() after the pool was used up by atomic allocations",
            ),
        ]
    for run in _driver_runs(lab):
        evidence += [
            Evidence(
                f"{run.kernel}: converted with its drivers, {name}",
                pages,
                "pages",
                "from rest_init() to the end of I/O through NVMe and virtio",
            )
            for name, pages in sorted(run.pages.items())
        ]
    return ClaimResult(
        verdict=decide(
            confirmed=bool(boots) and is_told and is_freed and not grows,
            refuted=bool(boots) and not is_freed,
            conditional=bool(boots) and is_told and is_freed and grows,
        ),
        condition=(
            "the region is .bss..decrypted, per-CPU data or swiotlb; the atomic DMA pools are "
            "shared at boot and grow at run time, whenever half of one is in use"
        ),
        evidence=tuple(evidence),
        guests=tuple(boot.kernel for boot in boots),
        witnesses=(ClaimWitness("the boot's exits in their order", "guestemu kernel boot --json"),),
        remark=(
            "The section's C-bit is clear from the first page tables on (A35), long before any "
            "notification; until MIGRATION_CONTROL is 1 only that switch protects it. swiotlb and "
            "per-CPU data are shared after it."
        ),
        plots=tuple(
            boot_plot(f"c12-{boot.kernel.replace(':', '-')}", boot.kernel, boot.levels)
            for boot in boots
            if boot.levels
        ),
    )


CLAIMS: Final = (
    Claim(
        "C9",
        "dma_pool (the atomic pools of kernel/dma/pool.c) does not clear its memory immediately.",
        "Steve Rutherford, 17 May 2021: 'Note: dma_pool doesn't immediately memset'",
        pool_clearing,
    ),
    Claim(
        "C10",
        "Most paths that call set_memory_encrypted() or set_memory_decrypted() clear the region.",
        "Rutherford, 2021",
        most_paths_clear,
    ),
    Claim(
        "C11",
        "Coherent buffers have a short life: they are used for immediate I/O and freed.",
        "Kalra, 2021",
        lifetimes,
        real_test="A dma:* trace of days from SEV guests with the drivers of real deployments",
    ),
    Claim(
        "C12",
        "Regions that stay decrypted are set up at boot; the unused part of .bss..decrypted is "
        "encrypted again and freed at the end of boot.",
        "Kalra, 2021",
        boot_regions,
        Need.KERNEL,
    ),
)
