# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu dma` does: opens the source, drives the guest, writes the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from guestemu.abi.files import check_place, write_atomically
from guestemu.cli import console
from guestemu.cli._options import sev_kind

if TYPE_CHECKING:
    from guestemu.cli._interrupts import Interrupts
    from guestemu.dma.events import Event
    from guestemu.dma.observer import Observer, Output
    from guestemu.dma.parquet import ParquetWriter
    from guestemu.dma.perfetto_trace import PerfettoWriter
    from guestemu.dma.report import DmaReport, WorkloadCounts
    from guestemu.dma.run import DmaRun, RunOptions
    from guestemu.dma.source import EventReader
    from guestemu.dma.what_if import Comparison
    from guestemu.report.document import Document


Replayed: TypeAlias = "tuple[DmaReport, Document, list[OSError]]"
"""The report, what is shown of it, and which files could not be written."""


class DmaRequest(msgspec.Struct, frozen=True):
    """The command line: what to replay on which guest of which kind, and what to write. Memory in
    MiB."""

    source: str
    guest: str
    host: str
    memory: int
    policies: tuple[str, ...] = ()
    cma: int = 0
    migrate: str | None = None
    report: Path | None = None
    parquet: Path | None = None
    perfetto: Path | None = None
    sev: str = "sev"


class WorkloadOrder(msgspec.Struct, frozen=True):
    """What to record: the file of commands, where the trace's text goes, and the guest's kind."""

    commands: Path
    dump: Path | None
    sev: str
    devices: tuple[str, ...]


def run_workload(order: WorkloadOrder, request: DmaRequest) -> Replayed:
    """Records the trace on the kernel of `request.guest`, then replays it there; as `run`.

    Raises `InputError`.
    """
    import tempfile

    from guestemu.abi.errors import InputError
    from guestemu.cli._kernel_run import read_commands
    from guestemu.dma.workload import record_workload
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.userland.session import Setting

    kind, _, name = request.guest.partition(":")
    if kind != "linux":
        raise InputError(f"--workload with --guest {request.guest}: give linux:IMAGE")
    commands = read_commands(order.commands)
    setting = Setting(sev=order.sev, devices=order.devices, append="trace_options=stacktrace")
    with console.busy("recording"):
        recording = record_workload(find_image(name), setting, commands, None)
    with tempfile.TemporaryDirectory() as scratch:
        path = order.dump or Path(scratch, "workload.trace")
        write_atomically(path, recording.text, "--dump-trace")
        return run(msgspec.structs.replace(request, source=str(path)), recording.counts)


def run(request: DmaRequest, workload: WorkloadCounts | None = None) -> Replayed:
    """Replays, and writes every file that is asked for but the page. `workload` is what the kernel
    did that recorded the source."""
    from guestemu.dma.patterns import is_pattern, parse_patterns, pattern_events

    if request.report is not None:
        check_place(request.report, "--html")
    if is_pattern(request.source):
        patterns = parse_patterns(request.source)
        return _replay(request, pattern_events(patterns), None, lambda: 0, None)
    from guestemu.abi.errors import InputError
    from guestemu.dma.source import STANDARD_INPUT, open_trace

    path = Path(request.source)
    try:
        size = 0 if request.source == STANDARD_INPUT else path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{request.source}: {error.strerror}; give the text of an ftrace buffer or a pattern "
            f"(guestemu dma --list)"
        ) from None
    with open_trace(path) as reader:
        return _replay(request, reader, size or None, lambda: reader.bytes_read, reader, workload)


def _replay(
    request: DmaRequest,
    events: Iterable[Event],
    total: int | None,
    position: Callable[[], int],
    reader: EventReader | None,
    workload: WorkloadCounts | None = None,
) -> Replayed:
    from guestemu.dma.document import dma_document

    outputs: list[Output] = []
    with ExitStack() as files:
        comparison = _comparison(request)
        perfetto = None
        if request.parquet is not None:
            from guestemu.dma.parquet import ParquetWriter

            _add(request.parquet, ParquetWriter(request.parquet), files, outputs)
        if request.perfetto is not None:
            from guestemu.dma.perfetto_trace import PerfettoWriter

            perfetto = PerfettoWriter(request.perfetto, request.guest)
            _add(request.perfetto, perfetto, files, outputs)
        driver = _driver(request, tuple(outputs))
        interrupted = _drive(driver, comparison, events, total, position)
        report = driver.report(None if reader is None else reader.report(), interrupted)
        if comparison is not None:
            report = msgspec.structs.replace(report, policies=comparison.result())
        if perfetto is not None:
            for migration in report.migrations:
                outputs[-1].attempt(partial(perfetto.add_migration, migration))
        if workload is not None:
            report = msgspec.structs.replace(report, workload=workload)
        source = request.source if workload is None else "a workload"
        title = f"{source} on {request.guest}"
        document = dma_document(report, title, driver.address_map())
    failures = [output.failure for output in outputs if output.failure is not None]
    return report, document, failures


def _add(
    path: Path, writer: ParquetWriter | PerfettoWriter, files: ExitStack, outputs: list[Output]
) -> None:
    """`writer` hears of everything, and is closed at the end."""
    from guestemu.dma.observer import Output

    output = Output(path, writer)
    outputs.append(output)
    files.callback(output.attempt, writer.close)


def _options(request: DmaRequest) -> RunOptions:
    from guestemu.dma.migration import parse_plan
    from guestemu.dma.run import RunOptions

    if request.migrate is None:
        return RunOptions(request.cma)
    return RunOptions(request.cma, *parse_plan(request.migrate))


def _driver(request: DmaRequest, observers: tuple[Observer, ...]) -> DmaRun:
    from guestemu.abi.errors import InputError
    from guestemu.dma.model import PREFIX, ModelRun, is_model

    options = _options(request)
    if is_model(request.guest):
        if request.sev != "sev":
            raise InputError(
                f"--sev {request.sev} with --guest {request.guest}: the model is of a SEV guest; "
                "take a snippet: or linux: guest"
            )
        generation = request.guest.removeprefix(PREFIX)
        return ModelRun(generation, request.memory, observers, options=options)
    from guestemu.dma.emulate import Emulation
    from guestemu.host.permission import named_by_user
    from guestemu.program.program import Header
    from guestemu.runner.testbed import build_testbed

    host, plugin = named_by_user(request.host)
    header = Header(
        guest=request.guest,
        sev=sev_kind(request.sev),
        host=host,
        memory=request.memory,
        plugin=plugin,
    )
    return Emulation(build_testbed(header), observers=observers, options=options)


def _comparison(request: DmaRequest) -> Comparison | None:
    """Policies are compared on the model of the guest's kernel generation."""
    if not request.policies:
        return None
    from guestemu.abi.errors import InputError

    if request.sev != "sev":
        raise InputError(
            f"--policy with --sev {request.sev}: policies run on the model of a SEV guest"
        )
    from guestemu.dma.what_if import Comparison

    kind, _, generation = request.guest.partition(":")
    if kind not in ("snippet", "model"):
        raise InputError(
            f"--policy with --guest {request.guest}: other policies run on the model only, which "
            f"places buffers otherwise than a real kernel; use --guest model:GENERATION"
        )
    return Comparison(generation, request.memory, request.policies)


class _Drive:
    """Replays events in batches; after Ctrl-C the rest of a batch is still replayed."""

    def __init__(self, driver: DmaRun, comparison: Comparison | None, size: int) -> None:
        self.count = 0
        self._driver = driver
        self._comparison = comparison
        self._size = size
        self._batch: list[Event] = []

    def run(
        self, events: Iterable[Event], interrupts: Interrupts, tell: Callable[[], None]
    ) -> None:
        for event in events:
            self._batch.append(event)
            if len(self._batch) >= self._size:
                self.flush(interrupts)
                tell()
        self.flush(interrupts)

    def flush(self, interrupts: Interrupts) -> None:
        interrupts.hold()
        batch, self._batch = self._batch, []
        self._driver.steps(batch)
        if self._comparison is not None:
            self._comparison.steps(batch)
        self.count += len(batch)
        interrupts.release()


def _drive(
    driver: DmaRun,
    comparison: Comparison | None,
    events: Iterable[Event],
    total: int | None,
    position: Callable[[], int],
) -> bool:
    """Replays the events, with a progress bar; says on stderr how fast. True: Ctrl-C ended it."""
    from guestemu.cli._dma_progress import DmaProgress
    from guestemu.cli._interrupts import Interrupts
    from guestemu.dma.model import ModelRun
    from guestemu.dma.run import BATCH_EVENTS

    start = time.monotonic()
    interrupted = False
    work = _Drive(driver, comparison, BATCH_EVENTS if isinstance(driver, ModelRun) else 1)
    with DmaProgress(total) as progress, Interrupts() as interrupts:

        def tell() -> None:
            if isinstance(driver, ModelRun) or not work.count & 15:
                progress.update(position(), work.count, driver.pages_converted)

        try:
            work.run(events, interrupts, tell)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        with Interrupts() as interrupts:
            work.flush(interrupts)
    seconds = max(time.monotonic() - start, 1e-6)
    pages = driver.pages_converted
    console.note(
        f"{work.count} events, {pages} pages converted in {seconds:.2f} s "
        f"({pages / seconds:.0f} pages/s)"
    )
    return interrupted
