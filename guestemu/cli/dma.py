# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu dma`: the DMA allocations of a trace or of a driver pattern, on an emulated guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from guestemu.dma.emulate import Emulation
    from guestemu.dma.events import Event
    from guestemu.dma.report import DmaReport
    from guestemu.program.program import Header

DEFAULT_MEMORY: Final = 256


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TRACE|PATTERN",
            help="Text of an ftrace buffer, of `trace-cmd report` or of `perf script`, CSV (- reads "
            "standard input), or a driver pattern such as nvme:queues=4,scenario=reset+e1000.",
            show_default=False,
        ),
    ] = "",
    guest: Annotated[str, typer.Option(help="Guest, see `guestemu guests`.")] = "snippet:6.1",
    host: Annotated[
        str, typer.Option(help="Host, see `guestemu hosts`, or FILE.py:CLASS.")
    ] = "map-gpa-range",
    memory: Annotated[int, typer.Option(help="Guest memory in MiB.")] = DEFAULT_MEMORY,
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
    overlaps, lines that cannot be read, allocations that do not fit.

    For example:

      guestemu dma boot.trace --json

      guestemu dma nvme:queues=4,scenario=unbind --guest snippet:6.12

      guestemu dma --list
    """
    from guestemu.abi.errors import InputError
    from guestemu.program.program import Header

    if list_patterns:
        _list(as_json)
        return EXIT_OK
    if not source:
        raise InputError("dma: no TRACE or PATTERN given; guestemu dma --help shows what there is")
    header = Header(guest=guest, host=host, memory=memory)
    report = _of_source(source, header)
    if as_json:
        console.emit_json(report)
    else:
        _print(report)
    _advise(report, memory)
    if report.interrupted:
        return EXIT_INTERRUPTED
    is_good = report.is_clean if strict else report.is_ok
    return EXIT_OK if is_good else EXIT_FINDINGS


def _of_source(source: str, header: Header) -> DmaReport:
    """Replays a pattern, or the file of that name."""
    from guestemu.abi.errors import InputError
    from guestemu.dma.patterns import is_pattern, parse_patterns, pattern_events
    from guestemu.dma.source import STANDARD_INPUT, open_trace

    if is_pattern(source):
        patterns = parse_patterns(source)
        emulation = _emulation(header)
        interrupted = _drive(emulation, pattern_events(patterns), None, lambda: 0)
        return emulation.report(interrupted=interrupted)
    path = Path(source)
    try:
        size = 0 if source == STANDARD_INPUT else path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{source}: {error.strerror}; give the text of an ftrace buffer or a pattern "
            f"(guestemu dma --list)"
        ) from None
    with open_trace(path) as reader:
        emulation = _emulation(header)
        interrupted = _drive(emulation, reader, size or None, lambda: reader.bytes_read)
        return emulation.report(reader.report(), interrupted)


def _emulation(header: Header) -> Emulation:
    from guestemu.dma.emulate import Emulation
    from guestemu.testbed import build_testbed

    return Emulation(build_testbed(header))


def _drive(
    emulation: Emulation,
    events: Iterable[Event],
    total: int | None,
    position: Callable[[], int],
) -> bool:
    """Replays the events, with a progress bar; says on stderr how fast. True: Ctrl-C ended it."""
    from guestemu.cli._dma_progress import DmaProgress
    from guestemu.cli._interrupts import Interrupts

    start = time.monotonic()
    count = 0
    interrupted = False
    with DmaProgress(total) as progress, Interrupts() as interrupts:
        try:
            for event in events:
                interrupts.hold()
                emulation.step(event)
                count += 1
                interrupts.release()
                progress.update(position(), count, emulation.pages_converted)
        except KeyboardInterrupt:
            interrupted = True
    seconds = max(time.monotonic() - start, 1e-6)
    pages = emulation.pages_converted
    console.note(
        f"{count} events, {pages} pages converted in {seconds:.2f} s "
        f"({pages / seconds:.0f} pages/s)"
    )
    return interrupted


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
