# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a run as Parquet: one row per event and one per conversion.

`events`: line, time_ns, cpu, task, phase, event (alloc, free), device, driver, dma_addr, size
(bytes), pages, flags, blocking, failed; then what the guest did for it: conversions, pages_changed,
hypercalls, splits, shared_pages (of buffers, after the event). `conversions`: line and time_ns of
the event (null at boot), device, pool, gfn, pages, private, changed, leaf_changes, calls_4k,
calls_2m, calls_1g, splits. docs/dma.md has the same with types.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from guestemu.abi.errors import InputError, MissingError
from guestemu.dma.cost import Conversion
from guestemu.dma.events import Alloc, Event, Mark
from guestemu.dma.live import FIRST_PHASE

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS: Final = 1 << 15
FILE_SUFFIX: Final = ".parquet"

Value: TypeAlias = int | str | bool | None

EVENT_COLUMNS: Final[Mapping[str, str]] = {
    "line": "int64",
    "time_ns": "int64",
    "cpu": "int32",
    "task": "string",
    "phase": "string",
    "event": "string",
    "device": "string",
    "driver": "string",
    "dma_addr": "uint64",
    "size": "uint64",
    "pages": "uint64",
    "flags": "string",
    "blocking": "bool",
    "failed": "bool",
    "conversions": "int64",
    "pages_changed": "int64",
    "hypercalls": "int64",
    "splits": "int64",
    "shared_pages": "int64",
}
CONVERSION_COLUMNS: Final[Mapping[str, str]] = {
    "line": "int64",
    "time_ns": "int64",
    "device": "string",
    "pool": "bool",
    "gfn": "int64",
    "pages": "int64",
    "private": "bool",
    "changed": "int64",
    "leaf_changes": "int64",
    "calls_4k": "int64",
    "calls_2m": "int64",
    "calls_1g": "int64",
    "splits": "int64",
}


class _Writer(Protocol):
    def write_table(self, table: pyarrow.Table) -> None:
        """Appends a row group."""

    def close(self) -> None:
        """Writes the footer."""


class ParquetFile:
    """A Parquet file that grows by rows. OSError where the file cannot be written."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingError(
                "--parquet needs pyarrow; install it with `pip install 'guestemu[analysis]'`"
            ) from None
        self._pyarrow = pyarrow
        self._schema = pyarrow.schema(
            [(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()]
        )
        self._rows: list[Sequence[Value]] = []
        self._writer: _Writer = parquet.ParquetWriter(str(path), self._schema, compression="zstd")

    def add(self, row: Sequence[Value]) -> None:
        """One row, values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                self._pyarrow.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_table(self._pyarrow.Table.from_arrays(columns, schema=self._schema))
            self._rows.clear()

    def close(self) -> None:
        """Writes what is left and the footer."""
        self._flush()
        self._writer.close()


class ParquetWriter:
    """An `Observer` that writes events to `path` if it ends in .parquet, else both tables into the
    directory `path`, which is made. Close it. InputError when it cannot be written."""

    def __init__(self, path: Path) -> None:
        is_file = path.suffix == FILE_SUFFIX
        try:
            if not is_file:
                path.mkdir(parents=True, exist_ok=True)
            events = path if is_file else path / f"events{FILE_SUFFIX}"
            self._events = ParquetFile(events, EVENT_COLUMNS)
            self._conversions = (
                None
                if is_file
                else ParquetFile(path / f"conversions{FILE_SUFFIX}", CONVERSION_COLUMNS)
            )
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise MissingError(f"--parquet {path}: {os.strerror(error.errno)}") from None
            raise InputError(
                f"--parquet {path}: {error.strerror or error}; give a directory or a .parquet file"
            ) from None
        self._event: Event | None = None
        self._phase = FIRST_PHASE
        self._shared = 0
        self._sums = [0, 0, 0, 0]

    def begin(self, event: Event, /) -> None:
        """See `Observer`."""
        self._finish()
        self._event = event

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        event = self._event
        if not is_pool:
            sums = self._sums
            sums[0] += 1
            sums[1] += conversion.changed
            sums[2] += conversion.hypercalls
            sums[3] += conversion.splits
            self._shared += -conversion.changed if conversion.private else conversion.changed
        if self._conversions is not None:
            self._conversions.add(
                (
                    None if event is None else event.line,
                    None if event is None else event.time_ns,
                    None if event is None or isinstance(event, Mark) else event.device,
                    is_pool,
                    conversion.gfn,
                    conversion.pages,
                    conversion.private,
                    conversion.changed,
                    conversion.leaf_changes,
                    conversion.calls_4k,
                    conversion.calls_2m,
                    conversion.calls_1g,
                    conversion.splits,
                )
            )

    def cleared(self, gfn: int, size: int, /) -> None:
        """See `Observer`."""

    def _finish(self) -> None:
        """The row of the event that ended."""
        event, self._event = self._event, None
        sums, self._sums = self._sums, [0, 0, 0, 0]
        if event is None:
            return
        if isinstance(event, Mark):
            self._phase = event.name
            return
        is_alloc = isinstance(event, Alloc)
        self._events.add(
            (
                event.line,
                event.time_ns,
                event.cpu,
                event.task,
                self._phase,
                "alloc" if is_alloc else "free",
                event.device,
                event.driver,
                event.dma_addr,
                min(event.size, (1 << 64) - 1),
                min(event.size, (1 << 64) - 1) + 4095 >> 12,
                "|".join(sorted(event.gfp)) if isinstance(event, Alloc) else None,
                event.is_blocking if isinstance(event, Alloc) else None,
                event.has_failed if isinstance(event, Alloc) else event.is_null,
                *sums,
                self._shared,
            )
        )

    def close(self) -> None:
        """Writes what is left; the files are complete then."""
        self._finish()
        self._events.close()
        if self._conversions is not None:
            self._conversions.close()
