# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel`: real kernels: fetched, described, booted, run, called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from guestemu.abi.errors import InputError
from guestemu.abi.files import write_atomically
from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._options import AsJson, Html
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.study.outcomes.cells import Cell

GROUP: Final = "Kernels and hosts"
ORDER: Final = 10

app = typer.Typer(
    help="Fetch, describe, boot, run and call real kernels.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Image: TypeAlias = Annotated[
    str,
    typer.Option(
        "--image",
        metavar="PATH",
        help="A .deb, vmlinuz, bzImage or vmlinux, or a fetched series such as 6.1; "
        "default: the newest fetched.",
        show_default=False,
        autocompletion=names.images,
    ),
]
ImageAsRun: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="[IMAGE]",
        help="As for `kernel run`.",
        show_default=False,
        autocompletion=names.images,
    ),
]
MemoryMib: TypeAlias = Annotated[
    int, typer.Option("--memory", metavar="MIB", min=1, help="Guest memory in MiB.")
]
CBitAt: TypeAlias = Annotated[
    int, typer.Option("--cbit", metavar="BIT", help="Position of the C-bit, 32 to 51.")
]
SevName: TypeAlias = Annotated[str, typer.Option("--sev", metavar="SEV", help="SEV feature.")]
Cpus: TypeAlias = Annotated[
    int, typer.Option("--cpus", metavar="N", min=1, help="Number of CPUs, 8 at most.")
]
Budget: TypeAlias = Annotated[
    int, typer.Option("--budget", metavar="BLOCKS", min=1, help="Basic blocks until giving up.")
]


@app.command()
def fetch(
    series: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERIES]...",
            help="6.1, 6.12-rt, 7.3-amd64, newest; without a flavour: cloud. Default: 6.1, 6.12 "
            "and the newest.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help="Look into this suite of Debian only (repeatable): trixie-backports, "
            "bullseye-security …; default: those that have kernels of several series.",
            show_default=False,
        ),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Show what can be fetched, and fetch nothing.")
    ] = False,
    modules: Annotated[
        bool,
        typer.Option(
            "--modules",
            help="Fetch the modules where they are a package of their own (6.19 and later, 20 to "
            "40 MB): `guestemu oracle` needs KVM's.",
        ),
    ] = False,
    source: Annotated[
        bool,
        typer.Option(
            "--source",
            help="Fetch the source in place of the kernel (150 MB) and unpack it into "
            "linux-source-SERIES here.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download Debian's newest kernels through this machine's apt, 13 to 50 MB each.

    They are kept in $XDG_CACHE_HOME/guestemu/kernels; `linux:6.1` then names the newest of its
    series wherever a guest is asked for. A download that broke off is continued. The lists of other
    suites are also kept below that cache, and come from the addresses that this machine's apt is
    configured for; nothing on the system is changed, and no root is needed.

    For example:

      guestemu kernel fetch

      guestemu kernel fetch --list

      guestemu kernel fetch newest --suite trixie-backports

      guestemu kernel fetch 6.12-rt 5.10 --json

      guestemu kernel fetch newest --modules

      guestemu kernel fetch 7.3 --source
    """
    from guestemu.cli._kernel_fetch import (
        fetch_kernels,
        fetch_sources,
        list_kernels,
        tell_list,
    )

    if list_only:
        offers = list_kernels(series or [], suite or [])
        if as_json:
            console.emit_json({"kernels": offers})
        else:
            tell_list(offers)
        return
    if source:
        trees = fetch_sources(series or [], suite or [])
        if as_json:
            console.emit_json({"sources": trees})
        else:
            for tree in trees:
                console.emit(f"{tree.version}  {tree.path}")
        return
    rows = fetch_kernels(series or [], suite or [], modules=modules)
    if as_json:
        console.emit_json({"kernels": rows})
    else:
        for row in rows:
            console.emit(f"linux:{row.name}  {row.path}")


@app.command()
def info(image: Image = "", as_json: AsJson = False) -> None:
    """Describe a kernel: version, configuration, functions.

    Nothing is run. `guestemu kernel defects` measures how a kernel behaves.

    For example:

      guestemu kernel info

      guestemu kernel info --image ./vmlinuz-6.12.94-amd64 --json
    """
    from guestemu.cli._kernel_info import describe, document

    described = describe(image)
    if as_json:
        console.emit_json(described)
    else:
        console.emit_document(document(described))


@app.command()
def boot(
    image: Image = "",
    until: Annotated[
        str, typer.Option("--until", metavar="FUNCTION", help="Stop at this kernel function.")
    ] = "rest_init",
    show_console: Annotated[
        bool, typer.Option("--console", help="Show the kernel's console while it boots.")
    ] = False,
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    sev: SevName = "sev",
    command_line: Annotated[
        str,
        typer.Option(
            "--command-line",
            metavar="TEXT",
            help="Add this to the kernel's command line.",
            show_default=False,
        ),
    ] = "",
    budget: Budget = 400_000_000,
    console_ve: Annotated[
        bool,
        typer.Option("--console-ve", help="In a TD: #VE for each access to the console's ports."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Boot an unmodified kernel as a KVM guest with memory encryption, up to a function.

    In a TD, CPUID, MSRs, I/O and HLT of the kernel raise #VE, and its own handler asks the host.
    Exit status 2 where it does not get there, with the place where it ended.

    For example:

      guestemu kernel boot --console

      guestemu kernel boot --until kvm_init_platform --json

      guestemu kernel boot --memory 6144 --command-line swiotlb=32768

      guestemu kernel boot --image 7.3 --sev tdx --console-ve
    """
    from guestemu.cli._kernel_boot import BootRequest, boot_image, document

    request = BootRequest(
        image=image,
        until=until,
        memory=memory,
        cbit=cbit,
        sev=sev,
        command_line=command_line,
        budget=budget,
        console_ve=console_ve,
    )
    report = boot_image(request, show_console, to_stderr=as_json)
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document(report))


@app.command()
def run(
    image: Annotated[
        str,
        typer.Argument(
            metavar="[IMAGE]",
            help="A .deb, vmlinuz, bzImage or vmlinux, or a fetched series such as 6.12; "
            "default: the newest fetched.",
            show_default=False,
            autocompletion=names.images,
        ),
    ] = "",
    sev: SevName = "sev",
    cpus: Cpus = 1,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Give the guest this device (repeatable): nvme, virtio-blk, virtio-console, "
            "virtio-net, virtio-rng, vmxnet3; default: nvme.",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            metavar="TEXT",
            help="Have PID 1 carry this out (repeatable): `read FILE BYTES OFFSET`, `fill FILE "
            "BYTES OFFSET`, `write FILE TEXT`, `mount TYPE DIR`, `mod FILE`, `sleep MS`, `say "
            "TEXT`. Default: a read of 512 bytes from each device, compared with what it holds.",
            show_default=False,
        ),
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(
            "--workload", metavar="FILE", help="Commands, one a line.", show_default=False
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="FILE",
            help="Run this static program as PID 1 in place of guestemu's own.",
            show_default=False,
        ),
    ] = None,
    initrd: Annotated[
        Path | None,
        typer.Option(
            "--initrd", metavar="FILE", help="Run from this initramfs.", show_default=False
        ),
    ] = None,
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="FUNCTION|text:TEXT",
            help="Stop at this kernel function, or when the console has this text.",
            show_default=False,
        ),
    ] = "",
    append: Annotated[
        str,
        typer.Option(
            "--append",
            metavar="TEXT",
            help="Add this to the kernel's command line.",
            show_default=False,
        ),
    ] = "",
    modules: Annotated[
        Path | None,
        typer.Option(
            "--modules",
            metavar="FILE.deb",
            help="Take kernel modules from this package; default: the image's own, or the "
            "linux-modules-* beside it.",
            show_default=False,
        ),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Boot, even where a snapshot in user space is kept.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not show the console.")] = False,
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    budget: Budget = 2_000_000_000,
    as_json: AsJson = False,
) -> int:
    """Run an unmodified kernel to user space, with real drivers over emulated devices.

    The kernel runs all its initcalls and PID 1 as a guest with encrypted memory. Its own drivers
    find an NVMe controller or virtio devices on the PCI bus and do DMA through their bounce
    buffers. PID 1 is a small program of guestemu's and waits for commands. The first run of a
    kernel boots it (5 to 20 seconds of CPU time); a snapshot is kept, and later runs start from it.
    Two runs of the same kernel with the same options have the same event hash.

    Exit status 1 where a driver returned other bytes than its device holds, 2 where the kernel does
    not get there.

    For example:

      guestemu kernel run 6.12

      guestemu kernel run 6.12 --sev snp --device nvme --device virtio-blk --quiet

      guestemu kernel run 6.12 --cpus 2 --command 'read /sys/devices/system/cpu/online 16 0'

      guestemu kernel run 6.1 --command 'fill /dev/nvme0n1 65536 0' --json

      guestemu kernel run --until 'text:nvme nvme0' --append loglevel=7

      guestemu kernel run 6.12 --initrd ./initramfs.cpio --until text:login
    """
    from guestemu.cli._kernel_run import RunRequest, document, run_kernel

    request = RunRequest(
        image=image,
        sev=sev,
        cpus=cpus,
        memory=max(memory, 256) if sev == "tdx" else memory,
        cbit=cbit,
        devices=tuple(device or ["nvme"]),
        append=append,
        commands=tuple(command or []),
        workload=workload,
        init=init,
        initrd=initrd,
        until=until,
        modules=modules,
        is_cold=cold,
        budget=budget,
    )
    show = None if quiet or as_json else console.emit
    report = run_kernel(request, show)
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document(report))
    return EXIT_FINDINGS if report.is_wrong else EXIT_OK


@app.command()
def hostile(
    image: ImageAsRun = "",
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            help="nvme, virtio-blk, virtio-console, virtio-net, virtio-rng or vmxnet3.",
        ),
    ] = "nvme",
    execs: Annotated[
        int, typer.Option("--execs", metavar="N", min=1, help="Number of experiments.")
    ] = 100,
    first: Annotated[
        int, typer.Option("--first", metavar="N", min=0, help="Number of the first experiment.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the changes.")] = 0,
    sev: SevName = "sev",
    as_json: AsJson = False,
) -> int:
    """Let a hostile device answer a kernel's own driver, and see how the kernel bears it.

    Each experiment starts from a snapshot in user space, changes a few of the device's answers
    (registers, completions, used rings, data; some are lost) and reads through the driver. A
    finding is a kernel that panics, warns, loops, or lets the device reach memory against a rule
    of `kernel run`. Seed and number decide an experiment: `--first N --execs 1` repeats it.

    Exit status 1 where there is a finding.

    For example:

      guestemu kernel hostile 6.12 --device virtio-blk --execs 50

      guestemu kernel hostile 6.12 --first 17 --execs 1 --json
    """
    from guestemu.cli._kernel_hostile import HostileRequest, document, run_hostile

    report = run_hostile(
        HostileRequest(image=image, sev=sev, device=device, count=execs, first=first, seed=seed)
    )
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document(report))
    if report.interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if report.findings else EXIT_OK


@app.command()
def migrate(
    image: ImageAsRun = "",
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="POINT",
            help="Stop the device there (repeatable): submitted, moved, completed or raised; "
            "default: each of them.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Give the guest this device and stop it (repeatable): as for `kernel run`; "
            "default: nvme and virtio-blk.",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            metavar="TEXT",
            help="Have PID 1 carry this out (repeatable), as for `kernel run`; the guest moves in "
            "the first one in which the device gets to the point. Default: a read of 512 bytes.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="See `guestemu hosts`.")
    ] = "map-gpa-range",
    lose: Annotated[
        str,
        typer.Option(
            "--lose",
            metavar="PAGE",
            help="Have the host's record miss a page of the request: data or queue.",
            show_default=False,
        ),
    ] = "",
    sev: SevName = "sev",
    cpus: Cpus = 1,
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    as_json: AsJson = False,
) -> int:
    """Migrate a kernel in user space while one of its devices works for a driver.

    PID 1 reads; the device is stopped behind the doorbell, behind its access to the data, behind
    its completion or behind its interrupt. Every page moves to a machine with another memory key as
    the source host's record says, then CPU, page states, device and what it had not done. A guest
    that stayed says what has to follow: the same results, bytes and events. A page that holds
    something else at the destination is named.

    Exit status 1 where something was lost or the device does not get to the point.

    For example:

      guestemu kernel migrate 6.12

      guestemu kernel migrate 6.12 --sev tdx --device nvme --at moved --json

      guestemu kernel migrate 6.12 --device virtio-blk --at completed --lose data

      guestemu kernel migrate 7.3 --device nvme --command 'fill /dev/nvme0n1 8192 0'
    """
    from guestemu.cli._kernel_migrate import MigrateRequest, document, run_migrate

    report = run_migrate(
        MigrateRequest(
            image=image,
            sev=sev,
            cpus=cpus,
            memory=max(memory, 256) if sev == "tdx" else memory,
            cbit=cbit,
            devices=tuple(device or ("nvme", "virtio-blk")),
            points=tuple(at or ()),
            commands=tuple(command or ()),
            host=host,
            lose=lose,
        )
    )
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document(report))
    if report.interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if report.is_wrong else EXIT_OK


@app.command(context_settings={"ignore_unknown_options": True})
def call(
    function: Annotated[str, typer.Argument(metavar="FUNCTION", help="A kernel function.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGUMENT]...",
            help="42, -1, 0x10, page:ORDER, vmalloc:SIZE, device, string:TEXT, gpa:ADDRESS, "
            "&SYMBOL; +N adds N bytes.",
        ),
    ] = None,
    image: Image = "",
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    sev: SevName = "sev",
    answer: Annotated[
        int, typer.Option("--answer", metavar="N", help="What the host answers hypercalls with.")
    ] = 0,
    budget: Budget = 20_000_000,
    then: Annotated[
        list[str] | None,
        typer.Option(
            "--then",
            metavar="'FUNCTION ARGUMENT...'",
            help="Call this afterwards, in the same machine (repeatable); result:N and "
            "argument:N.M are what call N returned and got.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="FUNCTION",
            help="Boot to this function first; at kernel_init the init thread runs, at "
            "prepare_namespace all initcalls are done.",
        ),
    ] = "rest_init",
    tree: Annotated[
        bool,
        typer.Option(
            "--tree", help="Show who called whom: instructions with callees, own, function."
        ),
    ] = False,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=1, help="Levels of the tree.")
    ] = 6,
    as_json: AsJson = False,
) -> int:
    """Call functions of a booted kernel; print what they returned and did.

    Exit status 1 where the kernel warned, stopped at an oops or did not return.

    For example:

      guestemu kernel call set_memory_decrypted page:0 1

      guestemu kernel call set_memory_decrypted vmalloc:0x3000 3 --image 6.1

      guestemu kernel call dma_alloc_attrs device 9000 page:0 0xcc0 0 --json

      guestemu kernel call --tree set_memory_decrypted page:2 3

      guestemu kernel call kvm_guest_cpu_offline 0

      guestemu kernel call set_memory_decrypted page:0 1 --at kernel_init

      guestemu kernel call __get_free_pages 0xcc0 0 --then 'set_memory_decrypted result:1 1'
    """
    from guestemu.cli._kernel_call import CallRequest, call_image, split_call
    from guestemu.kernel.document import calls_document

    first = (function, *(arguments or ()))
    request = CallRequest(
        image=image,
        calls=(first, *map(split_call, then or ())),
        memory=memory,
        cbit=cbit,
        sev=sev,
        answer=answer,
        budget=budget,
        depth=depth if tree else 0,
        at=at,
    )
    reports = call_image(request)
    if not as_json:
        console.emit_document(calls_document(reports))
    elif then:
        console.emit_json({"calls": reports}, "sequence")
    else:
        console.emit_json(reports[0])
    is_bad = any(report.oops or report.warnings for report in reports)
    return EXIT_FINDINGS if is_bad else EXIT_OK


@app.command()
def efi(
    variable: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VARIABLE]...", help="one, zero, missing, unreadable, no-runtime; default: all"
        ),
    ] = None,
    image: Image = "",
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    sev: SevName = "sev",
    as_json: AsJson = False,
) -> None:
    """Run an EFI guest's opt-in to live migration, by what its firmware's variable holds.

    The kernel's own setup_efi_kvm_sev_migration() reads SevLiveMigrationEnabled and writes
    MIGRATION_CONTROL or does not.

    For example:

      guestemu kernel efi

      guestemu kernel efi one zero --image 6.1 --json
    """
    from guestemu.cli._kernel_efi import opt_in
    from guestemu.kernel.document import opt_ins_document

    rows = opt_in(image, variable or [], memory, cbit, sev)
    if as_json:
        console.emit_json({"cases": rows})
    else:
        console.emit_document(opt_ins_document(rows))


@app.command()
def accept(
    image: Image = "",
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    sev: SevName = "snp",
    as_json: AsJson = False,
) -> None:
    """Run a kernel's accept_memory() on memory that the firmware left unaccepted.

    An SNP guest or a TD (--sev tdx) with 8 MiB of such memory and the firmware's bitmap for it:
    what the host hears, what the guest accepts, what becomes of the bitmap, and what a store to
    memory that was not accepted, a second acceptance and a refusal come to.

    For example:

      guestemu kernel accept --image 6.12

      guestemu kernel accept --image 7.3 --sev tdx --json
    """
    from guestemu.cli._kernel_accept import accept_steps
    from guestemu.kernel.document import accept_document

    steps = accept_steps(image, memory, cbit, sev)
    if as_json:
        console.emit_json({"steps": steps})
    else:
        console.emit_document(accept_document(steps))


@app.command()
def kexec(
    image: Image = "",
    to: Annotated[
        str,
        typer.Option("--to", metavar="PATH", help="The next kernel; default: the same one."),
    ] = "",
    hole: Annotated[
        str,
        typer.Option(
            "--hole",
            metavar="ADDRESS",
            help="Cut the RAM map of the next kernel at this address, which may lie inside a page.",
        ),
    ] = "",
    crash: Annotated[
        bool, typer.Option("--crash", help="Leave by the crash path instead of the reboot path.")
    ] = False,
    cpus: Annotated[
        int,
        typer.Option("--cpus", metavar="N", min=1, help="CPUs of the first kernel, 8 at most."),
    ] = 1,
    crashed_cpu: Annotated[
        int,
        typer.Option(
            "--crashed-cpu", metavar="N", min=0, help="With --crash, the CPU that does: 0 or 1."
        ),
    ] = 0,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="See `guestemu hosts`.")
    ] = "map-gpa-range",
    memory: MemoryMib = 128,
    cbit: CBitAt = 39,
    sev: SevName = "sev",
    as_json: AsJson = False,
) -> int:
    """Start a kernel from a kernel, on one host: what the host still believes, and when.

    The first kernel leaves shared pages behind and disables migration by its own shutdown code;
    the next one resets the host's record by its own boot. An SNP guest or a TD leaves page states
    behind, unless the old kernel makes its memory private before the jump. With several CPUs the
    first kernel runs in user space and leaves by its whole shutdown, which stops the other ones;
    VMSAs of an SNP guest that are left are told. Exit status 1 where the host's record or a page
    state differs from the page tables in the end, or the next kernel does not boot.

    For example:

      guestemu kernel kexec --image 6.1 --to 6.12

      guestemu kernel kexec --hole 0x4000800 --json

      guestemu kernel kexec --image 6.18 --sev snp

      guestemu kernel kexec --image 6.18 --sev snp --cpus 2 --crash --crashed-cpu 1
    """
    from guestemu.cli._kernel_kexec import KexecRequest, run_kexec
    from guestemu.kernel.document import kexec_document

    report = run_kexec(
        KexecRequest(image, to, memory, cbit, sev, host, hole, crash, cpus, crashed_cpu)
    )
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(kexec_document(report))
    is_wrong = report.stale or report.missing or report.unusable or not report.has_booted
    return EXIT_FINDINGS if is_wrong else EXIT_OK


Kernels: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KERNEL]...", help="Series such as 6.12-rt, or images; default: all fetched ones."
    ),
]
Only: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ROW", help="This row only (repeatable).", show_default=False),
]
Update: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--update",
        metavar="FILE.md",
        help="Put what was measured into this page's table; its other cells stay.",
        show_default=False,
    ),
]


@app.command()
def race(
    image: ImageAsRun = "",
    sev: SevName = "sev",
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            metavar="NAME",
            help="neighbours, back, stop, stop-try or offline (repeatable); default: all that the "
            "kernel has.",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        list[str] | None,
        typer.Option(
            "--order",
            metavar="CPU:WHERE,...",
            help="Run this order of turns (repeatable). WHERE is a number of basic blocks, "
            "`hypercall`, `ipi`, `return`, or FUNCTION[+OFFSET].",
            show_default=False,
        ),
    ] = None,
    turns: Annotated[
        int,
        typer.Option(
            "--turns",
            metavar="N",
            min=0,
            max=5,
            help="All orders of up to N turns that end at `hypercall`, `ipi` or `return`, in place "
            "of drawn ones.",
            show_default=False,
        ),
    ] = 0,
    execs: Annotated[
        int, typer.Option("--execs", metavar="N", min=1, help="Drawn orders for each scenario.")
    ] = 50,
    first: Annotated[
        int, typer.Option("--first", metavar="N", min=0, help="Number of the first drawn order.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the orders.")] = 0,
    plant: Annotated[
        str,
        typer.Option(
            "--plant",
            metavar="DEFECT",
            help="Put a defect into the kernel: flush (remote TLB flushes are left out) or lock "
            "(conversions do not take mem_enc_lock).",
            show_default=False,
        ),
    ] = "",
    as_json: AsJson = False,
) -> int:
    """Race page conversions of a real kernel on two CPUs, in many orders or in yours.

    From a snapshot in user space with two CPUs, each CPU calls one of the kernel's functions; an
    order of turns says who executes when, then both take turns until both have returned. Each CPU
    keeps its translations until it drops them itself. A finding is a page whose status differs
    between page tables, host, page states (SNP, TDX) and caller, a translation that is stale when a
    conversion returns, a conversion after conversions were stopped, a WARN, a panic, or a call that
    does not return. Seed
    and number decide an order: `--first N --execs 1` repeats it, and so does `--order`. A finding
    is shown with the smallest order that was found to show it.

    Exit status 1 where there is a finding.

    For example:

      guestemu kernel race 6.12 --execs 200

      guestemu kernel race 6.12 --scenario stop --order 0:hypercall,1:return

      guestemu kernel race 6.12 --scenario stop --turns 3

      guestemu kernel race 6.12 --sev snp --scenario neighbours --scenario back

      guestemu kernel race 6.12 --scenario neighbours --plant flush --json
    """
    from guestemu.cli._kernel_race import RaceRequest, document, run_races

    report = run_races(
        RaceRequest(
            image=image,
            sev=sev,
            scenarios=tuple(scenario or ()),
            orders=tuple(order or ()),
            turns=turns,
            count=execs,
            first=first,
            seed=seed,
            plant=plant,
        )
    )
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document(report))
    if report.interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if report.is_wrong else EXIT_OK


@app.command()
def drivers(
    kernels: Kernels = None,
    sev: Annotated[
        list[str] | None,
        typer.Option(
            "--sev",
            metavar="KIND",
            help="This guest kind only: sev, es, snp, tdx (repeatable); default: all.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="This device only: nvme, virtio-blk, virtio-net, virtio-rng (repeatable); "
            "default: all four.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="One boot of each; the event hash is not compared.")
    ] = False,
    update: Update = None,
    as_json: AsJson = False,
) -> int:
    """Bring kernels to user space as each guest kind, and read through their real drivers.

    Each kernel is booted twice as each kind with all devices. PID 1 reads 512 bytes through each
    driver, the bytes have to be the device's, every access of a device has to keep the rules of
    `kernel run`, and both boots have to have the same events. 20 to 50 seconds of CPU time for a
    kernel as one kind.

    Exit status 1 where one fails.

    For example:

      guestemu kernel drivers 6.12 --sev sev --device nvme --once

      guestemu kernel drivers 6.1 6.12 7.3 --update docs/userland.md
    """
    from guestemu.cli._kernel_drivers import run_drivers, tell, write_table

    devices = tuple(device or ["nvme", "virtio-rng", "virtio-blk", "virtio-net"])
    report = run_drivers(kernels or [], sev or [], devices, not once)
    if update is not None:
        write_table(update, report)
    if as_json:
        console.emit_json(report)
    else:
        tell(report)
    if report.interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if report.is_wrong else EXIT_OK


@app.command()
def entries(
    kernels: Kernels = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="As this guest kind only: sev, es, snp, tdx (repeatable); default: all.",
            show_default=False,
        ),
    ] = None,
    update: Update = None,
    as_json: AsJson = False,
) -> None:
    """Show which functions of a kernel convert pages, and which rows of `kernel test` reach them.

    Such a function calls set_memory_decrypted(), early_set_memory_encrypted(), accept_memory() or
    another of their kind; the calls are found in the kernel's code. Then it is booted as each guest
    kind and the rows are run, with a hook on each function. What no row reaches has a word on what
    it needs. About 30 seconds of CPU time for a kernel.

    For example:

      guestemu kernel entries 6.12 --kind sev

      guestemu kernel entries 6.1 6.12 7.3 --update docs/kernel-test.md
    """
    from guestemu.cli import _kernel_entries

    found = _kernel_entries.find(kernels or [], kind or [])
    if update is not None:
        _kernel_entries.write_table(update, found)
    if as_json:
        console.emit_json({"kernels": found})
    else:
        _kernel_entries.tell(found)


@app.command()
def defects(
    kernels: Kernels = None,
    only: Only = None,
    update: Update = None,
    findings: Annotated[
        Path | None,
        typer.Option(
            "--findings",
            metavar="FILE.md",
            help="With --update: also write into this page where each defect was seen.",
            show_default=False,
        ),
    ] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Measure which known defects kernels have: one small experiment for each, by running it.

    The defects are those of docs/findings.md. Exit status 0 where none is seen, 1 where one is, so
    `git bisect run` can look for the change that brought or mended it (an image that cannot be
    tested ends with 2 or 3).

    For example:

      guestemu kernel defects 6.1 6.12 7.3

      guestemu kernel defects ./bzImage --only 2gib-overflow

      guestemu kernel defects 6.1 6.12 --html defects.html

      guestemu kernel defects 7.3 --update docs/kernels.md --findings docs/findings.md
    """
    from guestemu.cli import _kernel_cells
    from guestemu.study.outcomes.defects import DEFECTS, SEEN

    cells = list(_kernel_cells.defects(kernels or [], only or []))
    if html is not None:
        console.write_document(html, _kernel_cells.document("defects", cells))
    if update is not None:
        rows = [defect.name for defect in DEFECTS]
        _kernel_cells.write_table(update, "guestemu kernel defects", cells, rows, findings)
    return _give("defects", cells, as_json, SEEN)


@app.command()
def matrix(
    kernels: Kernels = None,
    only: Only = None,
    update: Update = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Try every verb that takes a kernel on kernels: what works with which one.

    Exit status 1 where a verb fails.

    For example:

      guestemu kernel matrix 7.3 --json

      guestemu kernel matrix --update docs/kernels.md
    """
    from guestemu.cli import _kernel_cells
    from guestemu.study.outcomes.cells import FAILED
    from guestemu.study.outcomes.verbs import VERBS

    cells = list(_kernel_cells.matrix(kernels or [], only or []))
    if html is not None:
        console.write_document(html, _kernel_cells.document("matrix", cells))
    if update is not None:
        rows = [verb.name for verb in VERBS]
        _kernel_cells.write_table(update, "guestemu kernel matrix", cells, rows)
    return _give("matrix", cells, as_json, FAILED)


@app.command("test")
def examine(
    image: Annotated[
        str,
        typer.Argument(
            metavar="[IMAGE]",
            help="A bzImage, vmlinuz, vmlinux or .deb, or a fetched series such as 6.1; default: "
            "the newest fetched.",
            show_default=False,
            autocompletion=names.images,
        ),
    ] = "",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="ROW",
            help="This row only, or ROW/ANSWER (repeatable); known defects count then.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", metavar="KIND", help="This guest kind only: sev, es, snp, tdx (repeatable)."
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="IMAGE",
            help="Also test this image, and show where the two differ: verdicts, hypercalls, "
            "instructions.",
            show_default=False,
        ),
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Known defects count as wrong.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every row.")] = False,
    jobs: Annotated[
        int,
        typer.Option("--jobs", metavar="N", min=0, help="Processes; 0: as many as there are CPUs."),
    ] = 0,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="OUT.xml", help="Write JUnit XML for CI.")
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(
            "--update",
            metavar="FILE.md",
            help="Put a line for this kernel into the page's table; the others stay.",
            show_default=False,
        ),
    ] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Say whether a kernel converts pages right, in every way and as every guest kind.

    The kernel is booted as a SEV, SEV-ES, SNP and TDX guest. Each of its ways to convert pages is
    called, with a host that agrees, with one that refuses, and without memory; then page tables,
    page states and the host's record are compared. A row is right, a known defect (since when, and
    where in the source), or wrong. What was measured is kept: an interrupted test goes on.

    Exit status for `git bisect run`: 0 right or known defects only, 1 something is wrong (with
    --strict or --only also a known defect), 125 the image cannot be tested.

    For example:

      guestemu kernel test arch/x86/boot/bzImage

      guestemu kernel test bzImage --only 2gib-overflow

      guestemu kernel test bzImage --against 6.1

      guestemu kernel test 6.12 --kind snp --all --junit results.xml

      guestemu kernel test bzImage --html bzImage.html

      guestemu kernel test 6.12-rt --update docs/kernel-test.md
    """
    from guestemu.cli import _kernel_cells, _kernel_test
    from guestemu.cli.errors import one_line
    from guestemu.study.outcomes.junit import cells_xml

    if update is not None and (only or kind):
        raise InputError("--update: the line is of all rows; leave --only and --kind out")
    request = _kernel_test.Examination(
        image=image,
        against=against,
        only=tuple(only or ()),
        kinds=tuple(kind or ()),
        is_strict=strict,
        jobs=jobs,
    )
    try:
        report = _kernel_test.examine(request)
    except _kernel_test.Untestable as error:
        console.note(f"cannot be tested: {one_line(str(error))}")
        if as_json:
            console.emit_json({"status": _kernel_test.EXIT_SKIP, "message": str(error)}, "error")
        return _kernel_test.EXIT_SKIP
    if update is not None:
        _kernel_cells.write_line(update, report.image, report.cells)
    if junit is not None:
        xml = cells_xml(report.cells, report.seconds, request.counts_known)
        write_atomically(junit, xml, "--junit")
    document = _kernel_test.document(report, show_all)
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json(_kernel_test.as_object(report))
    else:
        console.emit_document(document)
    return report.status


def _give(verb: str, cells: Sequence[Cell], as_json: bool, bad: str) -> int:
    from guestemu.cli import _kernel_cells
    from guestemu.study.outcomes.cells import FAILED

    if as_json:
        console.emit_json({"rows": cells})
    else:
        _kernel_cells.tell(verb, cells)
    return EXIT_FINDINGS if {cell.outcome for cell in cells} & {bad, FAILED} else EXIT_OK
