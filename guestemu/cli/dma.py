# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu dma`: the DMA allocations of a trace or of a driver pattern, on an emulated guest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from guestemu.dma.report import DmaReport

DEFAULT_MEMORY: Final = 256


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TRACE|PATTERN",
            help="Text of an ftrace buffer, of `trace-cmd report` or `perf script`, CSV (- reads "
            "standard input), or a driver pattern such as nvme:queues=4,scenario=reset+e1000.",
            show_default=False,
        ),
    ] = "",
    guest: Annotated[
        str,
        typer.Option(
            help="Guest, see `guestemu guests`, or model:GENERATION: counts without a CPU, for "
            "millions of events."
        ),
    ] = "snippet:6.1",
    host: Annotated[
        str, typer.Option(help="Host, see `guestemu hosts`, or FILE.py:CLASS.")
    ] = "map-gpa-range",
    memory: Annotated[int, typer.Option(help="Guest memory in MiB.")] = DEFAULT_MEMORY,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Compare other ways to provide the memory: batch, keep-shared, "
            "pool-small[=PAGES], align-2m, or all.",
        ),
    ] = None,
    report_path: Annotated[
        Path | None,
        typer.Option("--report", metavar="OUT.html", help="Write a page with plots."),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE", help="Write events and conversions as Parquet tables (pyarrow)."
        ),
    ] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="OUT.perfetto-trace", help="Write a trace for ui.perfetto.dev."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 also for oddities of the trace.")
    ] = False,
    list_patterns: Annotated[
        bool, typer.Option("--list", help="List the driver patterns and their parameters.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Replay the DMA allocations of a trace or a driver pattern through a guest.

    Every allocation that may sleep is decrypted, cleared, and at its free encrypted again by the
    guest's own code; the checks compare its page tables with what the host was told. Allocations
    that may not sleep come from the atomic pools and convert nothing.

    Exit status 1: a check failed, or, with --strict, the trace has oddities: unknown frees,
    overlaps, lines that cannot be read, allocations that do not fit. A model: guest checks nothing.

    For example:

      guestemu dma boot.trace --json

      guestemu dma nvme:queues=4,scenario=unbind --guest snippet:6.12

      trace-cmd report | guestemu dma - --guest model:6.1 --policy all --report dma.html

      guestemu dma --list
    """
    from guestemu.abi.errors import InputError
    from guestemu.cli._dma_run import Request, run

    if list_patterns:
        _list(as_json)
        return EXIT_OK
    if not source:
        raise InputError("dma: no TRACE or PATTERN given; guestemu dma --help shows what there is")
    policies: tuple[str, ...] = ()
    if policy is not None:
        from guestemu.dma.policies import parse_policies

        policies = parse_policies(policy)
    request = Request(source, guest, host, memory, policies, report_path, parquet, perfetto)
    report = run(request)
    if as_json:
        console.emit_json(report)
    else:
        _print(report)
    _advise(report, memory)
    if report.interrupted:
        return EXIT_INTERRUPTED
    is_good = report.is_clean if strict else report.is_ok
    return EXIT_OK if is_good else EXIT_FINDINGS


def _print(report: DmaReport) -> None:
    from rich.console import Console

    from guestemu.dma.summary import print_summary

    print_summary(Console(highlight=False), report)


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
    from guestemu.dma.patterns import Scenario

    if as_json:
        patterns = [
            {"name": name, "help": driver.help, "parameters": driver.parameters}
            for name, driver in DRIVERS.items()
        ]
        scenarios = [scenario.value for scenario in Scenario]
        console.emit_json({"patterns": patterns, "scenarios": scenarios})
        return
    rows = []
    for name, driver in DRIVERS.items():
        rows.append((name, "", "", driver.help))
        for key, parameter in driver.parameters.items():
            allowed = f"{parameter.low}..{parameter.high}"
            rows.append(("", f"{key}={parameter.default}", allowed, parameter.help))
    console.emit_table(("pattern", "default", "range", "what"), rows)
    console.emit()
    console.emit("every pattern also takes scenario=probe|unbind|resize|reset and rounds=N;")
    console.emit("patterns join with +: nvme:queues=4,scenario=reset,rounds=3+e1000")
