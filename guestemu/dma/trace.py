# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads ftrace text (`/sys/kernel/tracing/trace`) and that of `trace-cmd report` and `perf script`.

The reader streams: it keeps one chunk of the file, counters and the device table, so gigabytes are
fine. It never fails on content. A line that is not a trace line is counted and the first ones are
kept with their numbers; an event it has no use for is counted by name. Only a file without any DMA
allocation or free is refused, when it has been read, because everything computed from it would be
zero and look like a result.

Formats: kernel/trace/trace_output.c (line head), tools/perf/builtin-script.c (`perf script`),
include/trace/events/dma.h (events; Linux 6.12.0 prints no `dir=`, later ones do), and probes on
dma_alloc_attrs() and dma_free_attrs() (`guestemu.dma.kprobes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import plural
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.kprobes import KprobePairs, Unusable, is_probe
from guestemu.dma.lines import MAX_LINE_BYTES, ByteSource, numbered_lines
from guestemu.guest.dma.gfp import parse_gfp

KEPT_GARBAGE: Final = 20
MAX_DEVICES: Final = 1 << 16
MAX_EVENT_NAMES: Final = 1024
OTHER_EVENTS: Final = "(others)"
_TRACE_DAT_MAGIC: Final = b"\x17\x08\x44tracing"

_HEAD: Final = (
    rb"\s*(\S.{0,63}?)-\d{1,10} +(?:\([ \d-]{1,20}\) +)?\[(\d{1,5})\] +(?:[^ :]+ +)?"
    rb"(\d{1,12})(?:\.(\d{1,9}))?: +"
)
_PERF_HEAD: Final = (
    rb"\s*(\S.{0,63}?) +\d{1,10}(?:/\d{1,10})? +(?:\[(\d{1,5})\] +)?(?:[^ :]+ +)?"
    rb"(\d{1,12})\.(\d{1,9}): +"
)
_FIELDS: Final = (
    rb"(?:dma:)?dma_(alloc|free)(_pages)?: +(\S{1,100}) (?:dir=\S{1,40} )?"
    rb"dma_addr=(?:0x)?([0-9a-fA-F]{1,16}) size=(\d{1,20}) virt_addr=(\S{0,40}) "
    rb"(?:flags=(\S{0,1000}) )?attrs=(\S{0,1000})\s*"
)
_DMA: Final = re.compile(_HEAD + _FIELDS)
_PERF_DMA: Final = re.compile(_PERF_HEAD + _FIELDS)
_BODY: Final = rb"([\w:]{1,100}): ?(.*?)\s*"
_EVENT: Final = re.compile(_HEAD + _BODY, re.DOTALL)
_PERF_EVENT: Final = re.compile(_PERF_HEAD + _BODY, re.DOTALL)
_FRAME: Final = re.compile(
    rb"\s*=> (?:[0-9a-f]{8,16} )?(\S{1,200}).{0,400}|\s+[0-9a-f]{8,16} (\S{1,200}).{0,400}"
)
"""A line of a call chain: `=> function` of ftrace, address and function of `perf script`."""

_STACK_HEAD: Final = re.compile(rb".{0,200}<stack trace>\s*|\s*=> ?\s*")
_DMA_CORE: Final = re.compile(
    rb"(?:__)?(?:dmam?_|trace_|ftrace_|perf_trace_|stack_trace|__traceiter|do_trace_)|0xffff"
)
"""Functions of a call chain that are not the driver's."""

MAX_SITES: Final = 4096
_MARK: Final = re.compile(rb"\s*(?:tracing_mark_write: +)?MARK (.{1,200})", re.DOTALL)
_PCI: Final = re.compile(rb"# PCI (\S{1,100}) (\S{1,100})(?: .*)?\s*")
_ENTRIES: Final = re.compile(rb"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})\s.*")
_LOST: Final = re.compile(rb"CPU:\d{1,5} \[(?:LOST )?(\d{1,18}) EVENTS(?: DROPPED)?\]\s*")
_NOISE: Final = re.compile(rb"(?:cpus=\d+|version = \d+|CPU \d+ is empty)\s*")
_NULL: Final = re.compile(rb"(?:0x)?0+|\(null\)|\(nil\)")
_SCALE: Final = tuple(int(10 ** (9 - digits)) for digits in range(10))
_MARK_EVENTS: Final = frozenset({b"tracing_mark_write", b"print", b"ftrace:print"})
_STREAMING: Final = re.compile(r"dma_(?:map|unmap|sync)_")
_DMA_EVENTS: Final = frozenset({"dma_alloc", "dma_free", "dma_alloc_pages", "dma_free_pages"})


class GarbageLine(msgspec.Struct, frozen=True):
    """A line that could not be read: its number, what is wrong, its first 80 characters."""

    line: int
    reason: str
    text: str


class CallSite(msgspec.Struct, frozen=True):
    """A driver's function from which buffers were allocated: how many, of how many bytes in all."""

    site: str
    allocations: int
    bytes: int


class TraceReport(msgspec.Struct, frozen=True):
    """What a reader saw besides the events that it returned.

    `ignored` counts by name the events that cause no conversion or have no coherent buffer (mapping
    events, dma_alloc_sgt …). `lost_events` are those the recorder says it dropped: with any, frees
    and allocations are missing. `drivers` maps device names to drivers (`# PCI` lines), `hardware`
    holds the words of the `# HW` line. `call_sites` come from the trace's call chains, most bytes
    first; empty without any.
    """

    name: str
    lines: int
    dma_events: int
    marks: int
    ignored: dict[str, int]
    garbage: int
    garbage_lines: tuple[GarbageLine, ...]
    lost_events: int
    drivers: dict[str, str]
    hardware: tuple[str, ...]
    call_sites: tuple[CallSite, ...] = ()


@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    """`raw` as text that is safe to print: what is not UTF-8 or not printable is escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=1024)
def _gfp(raw: bytes) -> frozenset[str]:
    return parse_gfp(_text(raw))


class TraceReader:
    """Iterates once over the events of a trace; `report()` returns the rest.

    `name` stands in messages for the input, `bytes_read` tells how far it has been read (in chunks,
    so ahead of the events). Iteration raises InputError for a binary trace.dat at
    once and, at the end, for an input without any DMA event. Call `report()` when iteration has
    ended, or at any time for the figures so far.
    """

    def __init__(self, source: ByteSource, name: str = "trace") -> None:
        self.bytes_read = 0
        self._source = source
        self._name = name
        self._lines = 0
        self._dma_events = 0
        self._marks = 0
        self._lost = 0
        self._garbage = 0
        self._garbage_lines: list[GarbageLine] = []
        self._ignored: dict[str, int] = {}
        self._drivers: dict[str, str] = {}
        self._hardware: tuple[str, ...] = ()
        self._pairs = KprobePairs()
        self._open_bytes: int | None = None
        self._sites: dict[str, CallSite] = {}

    def read(self, size: int, /) -> bytes:
        """The next bytes of the source, counted in `bytes_read`; for the line splitter."""
        chunk = self._source.read(size)
        self.bytes_read += len(chunk)
        return chunk

    def report(self) -> TraceReport:
        """The counters so far. Calls that never returned are lost events."""
        return TraceReport(
            name=self._name,
            lines=self._lines,
            dma_events=self._dma_events,
            marks=self._marks,
            ignored=dict(self._ignored),
            garbage=self._garbage,
            garbage_lines=tuple(self._garbage_lines),
            lost_events=self._lost + self._pairs.pending,
            drivers=dict(self._drivers),
            hardware=self._hardware,
            call_sites=tuple(sorted(self._sites.values(), key=lambda one: -one.bytes)),
        )

    def __iter__(self) -> Iterator[Event]:
        for number, line in numbered_lines(self):
            self._lines = number
            if number == 1 and line.startswith(_TRACE_DAT_MAGIC):
                raise InputError(
                    f"{self._name}: a binary trace-cmd file; "
                    f"convert it with `trace-cmd report -i FILE > FILE.txt`"
                )
            match = None
            if b"dma_addr=" in line:
                match = _DMA.fullmatch(line) or _PERF_DMA.fullmatch(line)
            event = self._other(number, line) if match is None else self._dma(number, match)
            if event is not None:
                self._open_bytes = event.size if isinstance(event, Alloc) else None
                yield event
        if not self._dma_events:
            maps = sum(n for name, n in self._ignored.items() if _STREAMING.match(name))
            if maps:
                raise InputError(
                    f"{self._name}: {plural(maps, 'streaming mapping')} (dma_map_*, dma_unmap_*), "
                    f"no dma_alloc, no dma_free; a SEV guest bounces those through swiotlb and "
                    f"converts nothing for them; record `-e dma:dma_alloc -e dma:dma_free`"
                )
            raise InputError(
                f"{self._name}: no dma_alloc or dma_free event in {self._lines} lines; record with "
                f"`trace-cmd record -e dma` (Linux 6.12 or later) or probe dma_alloc_attrs and "
                f"dma_free_attrs (docs/dma.md)"
            )

    def _dma(self, number: int, match: re.Match[bytes]) -> Alloc | Free | None:
        raw_task, cpu, secs, frac, verb, pages, dev, addr, size, virt, flags, attrs = match.groups()
        device = _text(dev)
        time_ns = int(secs) * 1_000_000_000 + int(frac) * _SCALE[len(frac)] if frac else int(secs)
        is_null = virt.endswith((b"0", b")")) and _NULL.fullmatch(virt) is not None
        driver = self._drivers.get(device, "")
        head = (number, time_ns, int(cpu or 0), _text(raw_task), device, driver)
        attributes = _gfp(attrs)
        if verb == b"alloc":
            if flags is None:
                self._reject(number, match.string, "an allocation without flags=")
                return None
            self._dma_events += 1
            return Alloc(
                *head,
                int(addr, 16),
                int(size),
                _gfp(flags),
                attributes,
                pages is not None,
                is_null,
            )
        self._dma_events += 1
        return Free(*head, int(addr, 16), int(size), attributes, pages is not None, is_null)

    def _other(self, number: int, line: bytes) -> Event | None:
        if not line or line.isspace():
            return None
        if line.startswith(b"#"):
            self._comment(line)
            return None
        if len(line) > MAX_LINE_BYTES:
            self._reject(number, line, f"longer than {MAX_LINE_BYTES} bytes")
            return None
        match = _EVENT.fullmatch(line) or _PERF_EVENT.fullmatch(line)
        if match is None:
            self._no_event(number, line)
            return None
        raw_task, cpu, secs, frac, event, body = match.groups()
        if is_probe(event, body):
            return self._probe(number, match)
        if event in _MARK_EVENTS and (mark := _MARK.fullmatch(body)) is not None:
            self._marks += 1
            time_ns = _nanoseconds(secs, frac)
            return Mark(number, time_ns, int(cpu or 0), _text(raw_task), _text(mark[1].strip()))
        name = _text(event).rpartition(":")[2]
        if name in _DMA_EVENTS:
            self._reject(number, line, f"a {name} event with unknown fields")
        elif name in self._ignored or len(self._ignored) < MAX_EVENT_NAMES:
            self._ignored[name] = self._ignored.get(name, 0) + 1
        else:
            self._ignored[OTHER_EVENTS] = self._ignored.get(OTHER_EVENTS, 0) + 1
        return None

    def _no_event(self, number: int, line: bytes) -> None:
        """A line without an event: what recorders write about themselves, call chains, garbage."""
        lost = _LOST.fullmatch(line)
        if lost is not None:
            self._lost += int(lost[1])
        elif (frame := _FRAME.fullmatch(line)) is not None:
            self._frame(frame[1] or frame[2])
        elif _NOISE.fullmatch(line) is None and _STACK_HEAD.fullmatch(line) is None:
            self._reject(number, line, "not a trace line")

    def _frame(self, function: bytes) -> None:
        """One function of a call chain: the first outside the DMA core is the call site of the
        allocation before."""
        size = self._open_bytes
        if size is None or _DMA_CORE.match(function):
            return
        self._open_bytes = None
        name = _text(function).partition("+0x")[0]
        if name in self._sites or len(self._sites) < MAX_SITES:
            known = self._sites.get(name, CallSite(name, 0, 0))
            self._sites[name] = CallSite(name, known.allocations + 1, known.bytes + size)

    def _probe(self, number: int, match: re.Match[bytes]) -> Event | None:
        raw_task, cpu, secs, frac, event, body = match.groups()
        task = match.string[: match.start(2)] if cpu else raw_task
        try:
            call = self._pairs.see(task.rstrip(b" ["), event, body)
        except Unusable as error:
            self._reject(number, match.string, str(error))
            return None
        if call is None:
            return None
        self._dma_events += 1
        device = _text(call.device)
        driver = self._drivers.get(device, "")
        head = (number, _nanoseconds(secs, frac), int(cpu or 0), _text(raw_task), device, driver)
        body_of = (call.address, call.size)
        if call.is_alloc:
            is_null = not call.address
            return Alloc(*head, *body_of, _gfp(call.gfp), _gfp(call.attrs), False, is_null)
        return Free(*head, *body_of, _gfp(call.attrs), False, not call.address)

    def _comment(self, line: bytes) -> None:
        if (pci := _PCI.fullmatch(line)) is not None:
            if len(self._drivers) < MAX_DEVICES:
                self._drivers[_text(pci[1])] = _text(pci[2])
        elif line.startswith(b"# HW "):
            self._hardware = tuple(_text(word) for word in line[5:500].split())
        elif (entries := _ENTRIES.fullmatch(line + b" ")) is not None:
            self._lost += max(0, int(entries[2]) - int(entries[1]))

    def _reject(self, number: int, line: bytes, reason: str) -> None:
        self._garbage += 1
        if len(self._garbage_lines) < KEPT_GARBAGE:
            self._garbage_lines.append(GarbageLine(number, reason, _text(line[:80])))


def _nanoseconds(seconds: bytes, fraction: bytes | None) -> int:
    """Trace clocks with a point count seconds, those without count ticks, taken as nanoseconds."""
    if fraction is None:
        return int(seconds)
    return int(seconds) * 1_000_000_000 + int(fraction) * _SCALE[len(fraction)]
