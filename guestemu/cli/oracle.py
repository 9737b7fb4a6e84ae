# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu oracle`: the KVM of a real kernel, run by QEMU without hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from guestemu.cli import _names as names
from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_MISSING, EXIT_OK

GROUP: Final = "Regression"
ORDER: Final = 25

app = typer.Typer(
    help="Ask the KVM of a real kernel, run by QEMU without hardware.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Kernel: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="KERNEL",
        help="A series that was fetched (6.12), a .deb, or a bzImage.",
        show_default=False,
        autocompletion=names.images,
    ),
]
Modules: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--modules",
        metavar="DIR",
        help="Take kvm.ko and kvm-amd.ko from here; a bzImage with KVM as modules needs it.",
        show_default=False,
    ),
]
Native: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--native",
        help="Let QEMU use this computer's /dev/kvm instead of TCG: faster, but the guest kernel "
        "then runs on the hardware.",
    ),
]


@app.command()
def doctor(
    kernel: Annotated[
        str,
        typer.Argument(
            metavar="[KERNEL]",
            help="Start this kernel and look at its KVM.",
            show_default=False,
            autocompletion=names.images,
        ),
    ] = "",
    modules: Modules = None,
    native: Native = False,
    as_json: AsJson = False,
) -> int:
    """Check whether this machine can run a kernel's KVM.

    Looks for QEMU, a C compiler that makes static programs, and /dev/kvm for --native. With a
    KERNEL it is started, and its KVM described.

    Exit status 3: something needed is missing.

    For example:

      guestemu oracle doctor

      guestemu oracle doctor 6.12 --json
    """
    from guestemu.cli._oracle import checks_document, examine

    checks = examine(kernel, modules, native)
    if as_json:
        console.emit_json({"checks": checks})
    else:
        console.emit_document(checks_document(checks))
    return EXIT_MISSING if any(check.state == "missing" for check in checks) else EXIT_OK


@app.command()
def record(
    kernel: Kernel,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.jsonl",
            help="Write the recording here, compressed for FILE.jsonl.gz.",
        ),
    ],
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Conversions on software-protected VMs instead; the modules must have them "
            "(`oracle build-modules`).",
        ),
    ] = False,
    modules: Modules = None,
    native: Native = False,
    as_json: AsJson = False,
) -> int:
    """Record the conformance matrix: 1248 VMs, 2932 steps.

    `guestemu conform` compares a recording with the model. A case whose VM takes the kernel down is
    recorded as failed, and the rest goes on. Takes about 100 seconds of processor time.

    Exit status 1: a case failed.

    For example:

      guestemu oracle record 6.12 -o linux-6.12.jsonl

      guestemu oracle record ./bzImage --modules ./linux -o mine.jsonl.gz

      guestemu oracle record 7.3 --modules protected --memory -o protected.jsonl.gz
    """
    from guestemu.cli._oracle import record_matrix, recording_document

    made = record_matrix(kernel, modules, output, native=native, memory=memory)
    if as_json:
        console.emit_json(made)
    else:
        console.emit_document(recording_document(made))
    return EXIT_FINDINGS if made.failed or made.complaints else EXIT_OK


@app.command()
def run(
    kernel: Kernel,
    recording: Annotated[
        Path,
        typer.Argument(metavar="RESULTS.jsonl", help="A recording, or a finding of `oracle fuzz`."),
    ],
    modules: Modules = None,
    native: Native = False,
    as_json: AsJson = False,
) -> int:
    """Do the steps of a recording on the KVM of KERNEL and compare.

    It shows whether another kernel behaves like the recorded one, and whether it still has a
    finding.

    Exit status 1: a step differs.

    For example:

      guestemu oracle run 6.12 linux-6.1.jsonl

      guestemu oracle run newest finding-1.jsonl --json
    """
    from guestemu.cli._oracle import replay_document, replay_recording

    replayed = replay_recording(kernel, modules, recording, native)
    if as_json:
        console.emit_json(replayed)
    else:
        console.emit_document(replay_document(replayed))
    return EXIT_FINDINGS if replayed.differences or replayed.failed else EXIT_OK


@app.command()
def fuzz(
    kernel: Kernel,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Compare at least so many steps.")
    ] = 20000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random steps.")] = 1,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="VERSION",
            help="Compare with the model of this kernel; default: that of KERNEL.",
            show_default=False,
        ),
    ] = None,
    repaired: Annotated[
        bool,
        typer.Option(
            "--repaired",
            help="Compare with the model without the kernel's known defects: what differs shows "
            "them.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Write each finding there as a recording, finding-1.jsonl …",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Conversion programs with contents on software-protected VMs; the modules must "
            "have them (`oracle build-modules`).",
        ),
    ] = False,
    modules: Modules = None,
    native: Native = False,
    as_json: AsJson = False,
) -> int:
    """Compare random steps on the KVM of KERNEL with the model.

    Hypercalls of every number, VMCALL and KVM's MSRs in each mode and CPL, on VMs with one or two
    vCPUs whose capabilities, filters and memory slots change. A step that differs is made as small
    as it can be and explained. A kernel that warns, crashes or hangs is also a finding; it is
    started again and the campaign goes on. Ctrl-C ends it with what was found.

    With --memory: attributes, guest_memfd, slots and MAP_GPA_RANGE, and what guest and user space
    read in each page.

    Exit status 1: findings.

    For example:

      guestemu oracle fuzz 6.12 --steps 100000

      guestemu oracle fuzz 6.12 --repaired --out found

      guestemu oracle fuzz 7.3 --modules ./my-kvm --seed 7 --json

      guestemu oracle fuzz 7.3 --modules protected --memory
    """
    from guestemu.cli._oracle_fuzz import fuzz_kernel, sums_document

    sums, is_interrupted = fuzz_kernel(
        kernel,
        modules,
        steps,
        seed=seed,
        model=model,
        repaired=repaired,
        memory=memory,
        out=out,
        native=native,
    )
    if as_json:
        console.emit_json(sums)
    else:
        console.emit_document(sums_document(sums))
    if is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FINDINGS if sums.findings else EXIT_OK


@app.command("build-modules")
def build_modules(
    kernel: Annotated[
        str,
        typer.Argument(
            metavar="KERNEL",
            help="A series that was fetched from Debian (7.3).",
            show_default=False,
            autocompletion=names.images,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Put kvm.ko and kvm-amd.ko here.")
    ],
    patch: Annotated[
        Path | None,
        typer.Option(
            "--patch",
            metavar="FILE",
            help="Change KVM's source by this patch first (as `patch -p1` reads it).",
            show_default=False,
        ),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Without software-protected VMs, as the package has them."),
    ] = False,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="The modules tell which of their code was reached, for a kernel without kcov.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Build the KVM modules of KERNEL anew.

    Source, headers and the compiler of the kernel's own release are fetched with apt and unpacked
    into this program's cache (about 700 MB); the build sees nothing else of this machine and has no
    network. The modules have software-protected VMs, which Debian's lack: with them `oracle fuzz
    --memory` does real conversions of guest_memfd. They load into the kernel of the package, and
    only QEMU's guest loads them.

    For example:

      guestemu oracle build-modules 7.3 -o protected

      guestemu oracle build-modules 6.12 --plain --patch change.patch -o changed

      guestemu oracle build-modules 7.3 --coverage -o covered
    """
    from guestemu.oracle.module_build import ModuleBuilder, jobs, options_for, series_of

    options = () if plain else options_for(series_of(kernel))
    built = ModuleBuilder(kernel, console.note).build(
        output, options=options, patch=patch, has_coverage=coverage, jobs=jobs()
    )
    if as_json:
        console.emit_json(built)
    else:
        console.emit(f"{output}: kvm.ko and kvm-amd.ko of {built.kernel}")
        console.emit(f"use them with --modules {output}")
    return EXIT_OK


@app.command()
def speed(
    kernel: Kernel,
    batches: Annotated[
        int,
        typer.Option("--batches", metavar="N", min=1, help="Batches of 2048 steps, three times."),
    ] = 4,
    modules: Modules = None,
    native: Native = False,
    as_json: AsJson = False,
) -> int:
    """Measure how fast the KVM of KERNEL answers.

    Start-up, a client in C that posts the same batches and does nothing with the replies, the model
    alone, and a campaign with both; all in one run, as the load of a machine changes.

    For example:

      guestemu oracle speed 6.12

      guestemu oracle speed 7.3 --batches 20 --json
    """
    from guestemu.cli._oracle import measure_speed, speed_document

    measured = measure_speed(kernel, modules, batches, native)
    if as_json:
        console.emit_json(measured)
    else:
        console.emit_document(speed_document(measured))
    return EXIT_OK
