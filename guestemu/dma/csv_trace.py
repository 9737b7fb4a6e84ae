# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads DMA allocations from CSV, for traces that come from nowhere the kernel's formats are known.

The first line names the columns, in any order: `event` (alloc, free or mark), `device`, `address`
and `size` (bytes) must be there; `time_ns`, `cpu`, `task`, `driver`, `flags` and `attrs` (names
joined by |) may. Numbers are decimal or 0x…; a mark takes its name from `device`. A field may be
quoted but holds no line break. Lines that cannot be read are counted and the first ones kept, as
for the other formats.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.lines import MAX_LINE_BYTES, ByteSource, numbered_lines
from guestemu.dma.trace import KEPT_GARBAGE, GarbageLine, TraceReport
from guestemu.guest.dma.gfp import parse_gfp

COLUMNS: Final = ("event", "device", "address", "size")
OPTIONAL: Final = ("time_ns", "cpu", "task", "driver", "flags", "attrs")
_MAX_DIGITS: Final = 20
_LARGEST: Final = {"time_ns": 1 << 62, "cpu": 1 << 16, "size": 1 << 52}
"""Sums of these stay within what tables and traces hold."""


def is_csv(first_line: bytes) -> bool:
    """Whether a file that begins with this line is a CSV trace."""
    names = {name.strip(' "\r\n') for name in first_line.decode("utf-8", "replace").split(",")}
    return names.issuperset(("event", "address"))


class CsvReader:
    """Iterates once over the events; interface and errors as `TraceReader`."""

    def __init__(self, source: ByteSource, name: str = "trace") -> None:
        self.bytes_read = 0
        self._source = source
        self._name = name
        self._lines = self._dma_events = self._marks = self._garbage = 0
        self._garbage_lines: list[GarbageLine] = []
        self._drivers: dict[str, str] = {}

    def read(self, size: int, /) -> bytes:
        """The next bytes of the source, counted in `bytes_read`; for the line splitter."""
        chunk = self._source.read(size)
        self.bytes_read += len(chunk)
        return chunk

    def report(self) -> TraceReport:
        """The counters so far."""
        return TraceReport(
            name=self._name,
            lines=self._lines,
            dma_events=self._dma_events,
            marks=self._marks,
            ignored={},
            garbage=self._garbage,
            garbage_lines=tuple(self._garbage_lines),
            lost_events=0,
            drivers=dict(self._drivers),
            hardware=(),
        )

    def __iter__(self) -> Iterator[Event]:
        columns: list[str] = []
        for number, line in numbered_lines(self):
            self._lines = number
            text = line.decode("utf-8", "backslashreplace")
            if not text.strip() or text.startswith("#"):
                continue
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
                fields = [field.strip() for field in next(csv.reader([text], strict=True))]
                if not columns:
                    columns = self._header(fields)
                    continue
                if len(fields) != len(columns):
                    raise ValueError(f"{len(fields)} fields instead of {len(columns)}")
                yield self._event(number, dict(zip(columns, fields, strict=True)))
            except (ValueError, csv.Error) as error:
                self._reject(number, text, str(error))
        if not self._dma_events:
            raise InputError(f"{self._name}: no alloc or free row in {self._lines} lines of CSV")

    def _header(self, names: list[str]) -> list[str]:
        missing = [name for name in COLUMNS if name not in names]
        unknown = [name for name in names if name not in COLUMNS + OPTIONAL]
        if missing or unknown or len(set(names)) != len(names):
            raise InputError(
                f"{self._name}: CSV columns {', '.join(names)[:80]!r}; there must be "
                f"{', '.join(COLUMNS)} and may be {', '.join(OPTIONAL)}, each once"
            )
        return names

    def _event(self, number: int, row: Mapping[str, str]) -> Event:
        kind, device = _printable(row["event"]), _printable(row["device"])
        time_ns = _number("time_ns", row.get("time_ns") or str(number * 1000))
        cpu = _number("cpu", row.get("cpu") or "0")
        task = _printable(row.get("task", ""))
        if kind == "mark":
            self._marks += 1
            return Mark(number, time_ns, cpu, task, device)
        if kind not in ("alloc", "free") or not device:
            raise ValueError("event is alloc, free or mark" if device else "no device")
        driver = _printable(row.get("driver", ""))
        address, size = _number("address", row["address"]), _number("size", row["size"])
        if address + size > 1 << 64:
            raise ValueError("the buffer reaches beyond 64 bits of addresses")
        attrs = parse_gfp(row.get("attrs", ""))
        self._dma_events += 1
        if driver and len(self._drivers) < 1 << 16:
            self._drivers[device] = driver
        head = (number, time_ns, cpu, task, device, driver, address, size)
        if kind == "free":
            return Free(*head, attrs)
        return Alloc(*head, parse_gfp(row.get("flags") or "GFP_KERNEL"), attrs)

    def _reject(self, number: int, text: str, reason: str) -> None:
        self._garbage += 1
        if len(self._garbage_lines) < KEPT_GARBAGE:
            self._garbage_lines.append(GarbageLine(number, reason, _printable(text[:80])))


def _number(name: str, text: str) -> int:
    if not text.isascii() or len(text) > _MAX_DIGITS:
        raise ValueError(f"{name} is not a number")
    try:
        value = int(text, 16) if text.startswith("0x") else int(text)
    except ValueError:
        raise ValueError(f"{name} is not a number") from None
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name} does not fit into 64 bits")
    if value > _LARGEST.get(name, value):
        raise ValueError(f"{name} is larger than any: {_LARGEST[name]} at most")
    return value


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
