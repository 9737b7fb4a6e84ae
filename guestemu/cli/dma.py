# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu dma`: the DMA allocations of a trace or of a driver pattern, on an emulated guest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from guestemu.cli._dma_run import DmaRequest, Replayed, WorkloadOrder
    from guestemu.dma.report import DmaReport

GROUP: Final = "Kernels and hosts"
ORDER: Final = 30
RENAMED: Final = {"--report": "--html"}

DEFAULT_MEMORY: Final = 256

Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="TRACE|PATTERN",
        help="Text of an ftrace buffer, of `trace-cmd report` or `perf script`, CSV (- reads "
        "standard input), or a driver pattern such as nvme:queues=4,scenario=reset+e1000.",
        show_default=False,
    ),
]
Guest: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Guest, see `guestemu guests`, or model:GENERATION: counts without a CPU, for "
        "millions of events."
    ),
]
Host: TypeAlias = Annotated[str, typer.Option(help="Host, see `guestemu hosts`, or FILE.py:CLASS.")]
Memory: TypeAlias = Annotated[int, typer.Option(help="Guest memory in MiB.")]
Cma: TypeAlias = Annotated[
    int, typer.Option(metavar="MIB", min=0, help="Contiguous memory area for large buffers.")
]
Policy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Compare other ways to provide the memory: batch, keep-shared, "
        "pool-small[=PAGES], align-2m, or all.",
    ),
]
Migrate: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="at=S,rate=MIB,...",
        help="Migrate the guest during the run: at=SECONDS, rate=MIB per second, passes=N, "
        "stop=PAGES, status=copied|live (both).",
    ),
]
ReportPath: TypeAlias = Annotated[
    Path | None, typer.Option("--html", metavar="OUT.html", help="Write a page with plots.")
]
Parquet: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="DIR|FILE", help="Write events and conversions as Parquet tables."),
]
Perfetto: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="OUT.perfetto-trace", help="Write a trace for ui.perfetto.dev."),
]
Strict: TypeAlias = Annotated[
    bool, typer.Option("--strict", help="Exit 1 also for oddities of the trace.")
]
ListPatterns: TypeAlias = Annotated[
    bool, typer.Option("--list", help="List the driver patterns and their parameters.")
]


Workload: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--workload",
        metavar="FILE",
        help="Record the trace from --guest linux:IMAGE in user space, whose own drivers run these "
        "commands (docs/userland.md).",
        show_default=False,
    ),
]
DumpTrace: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--dump-trace",
        metavar="OUT",
        help="With --workload: write the kernel's trace as ftrace text.",
        show_default=False,
    ),
]
WorkloadSev: TypeAlias = Annotated[
    str, typer.Option("--sev", metavar="sev|es|snp|tdx", help="Kind of the guest.")
]
WorkloadDevices: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="With --workload: give the guest this device (repeatable); default: nvme.",
        show_default=False,
    ),
]


def command(
    source: Source = "",
    guest: Guest = "snippet:6.1",
    host: Host = "map-gpa-range",
    memory: Memory = DEFAULT_MEMORY,
    cma: Cma = 0,
    policy: Policy = None,
    migrate: Migrate = None,
    report_path: ReportPath = None,
    parquet: Parquet = None,
    perfetto: Perfetto = None,
    strict: Strict = False,
    workload: Workload = None,
    dump_trace: DumpTrace = None,
    sev: WorkloadSev = "sev",
    device: WorkloadDevices = None,
    list_patterns: ListPatterns = False,
    as_json: AsJson = False,
) -> int:
    """Replay DMA allocations of a trace or a driver pattern.

    The guest's own code decrypts and clears each allocation that may sleep, and encrypts it again
    when it is freed; the checks compare page tables and the host's record. Allocations that may not
    sleep come from the atomic pools and convert nothing.

    Exit status 1: a check failed, or, with --strict, the trace has oddities: unknown frees,
    overlaps, lines that cannot be read, allocations that do not fit. A guest model:GENERATION runs
    no checks.

    --workload records the trace first: the kernel boots to user space, its own drivers carry the
    commands out on emulated devices, and its trace buffer is replayed on the same kernel.

    For example:

      guestemu dma boot.trace --json

      guestemu dma nvme:queues=4,scenario=unbind --guest snippet:6.12 --migrate at=0.5

      guestemu dma --guest linux:6.12 --workload nvme.txt --dump-trace nvme.trace

      guestemu dma nvme --guest linux:6.12 --sev tdx

      trace-cmd report | guestemu dma - --guest model:6.1 --policy all --html dma.html
    """
    from guestemu.cli._dma_run import DmaRequest, WorkloadOrder

    if list_patterns:
        _list(as_json)
        return EXIT_OK
    request = DmaRequest(
        source,
        guest,
        host,
        memory,
        _policies(policy),
        cma,
        migrate,
        report_path,
        parquet,
        perfetto,
        sev,
    )
    if workload is not None:
        order = WorkloadOrder(workload, dump_trace, sev, tuple(device or ["nvme"]))
        return _record(order, request, strict, as_json)
    return _replay(request, strict, as_json)


def _record(order: WorkloadOrder, request: DmaRequest, strict: bool, as_json: bool) -> int:
    from guestemu.abi.errors import InputError
    from guestemu.cli._dma_run import run_workload

    if request.source:
        raise InputError(f"dma {request.source}: --workload makes the trace; leave the file out")
    return _finish(run_workload(order, request), request, strict, as_json)


def _policies(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    from guestemu.dma.policies import parse_policies

    return parse_policies(text)


def _replay(request: DmaRequest, strict: bool, as_json: bool) -> int:
    from guestemu.abi.errors import InputError
    from guestemu.cli._dma_run import run

    if not request.source:
        raise InputError("dma: no TRACE or PATTERN given; guestemu dma --help shows what there is")
    return _finish(run(request), request, strict, as_json)


def _finish(done: Replayed, request: DmaRequest, strict: bool, as_json: bool) -> int:
    report, document, failures = done
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document)
    _advise(report, request.memory)
    if request.report is not None:
        console.write_document(request.report, document)
    if failures:
        raise failures[0]
    if report.interrupted:
        return EXIT_INTERRUPTED
    is_good = report.is_clean if strict else report.is_ok
    return EXIT_OK if is_good else EXIT_FINDINGS


def _advise(report: DmaReport, memory: int) -> None:
    """What the user can do about allocations that the guest could not serve."""
    if report.requested is None:
        return
    missed = report.requested.no_memory + report.requested.pool_empty
    if missed:
        console.note(
            f"{missed} allocations did not fit into the guest's {memory} MiB: they are listed as "
            f"anomalies and converted nothing; a larger --memory may hold them"
        )


def _list(as_json: bool) -> None:
    from guestemu.dma.drivers import DRIVERS
    from guestemu.dma.patterns import DriverScenario

    if as_json:
        patterns = [
            {"name": name, "help": driver.help, "parameters": driver.parameters}
            for name, driver in DRIVERS.items()
        ]
        scenarios = [scenario.value for scenario in DriverScenario]
        console.emit_json({"patterns": patterns, "scenarios": scenarios}, "patterns")
        return
    rows = []
    for name, driver in DRIVERS.items():
        rows.append((name, "", "", driver.help))
        for key, parameter in driver.parameters.items():
            allowed = f"{parameter.low}..{parameter.high}"
            rows.append(("", f"{key}={parameter.default}", allowed, parameter.help))
    console.emit_table(("pattern", "default", "range", "what"), rows)
    console.emit()
    known = "|".join(scenario.value for scenario in DriverScenario)
    console.emit(f"every pattern also takes scenario={known} and rounds=N;")
    console.emit("patterns join with +: nvme:queues=4,scenario=reset,rounds=3+e1000")
