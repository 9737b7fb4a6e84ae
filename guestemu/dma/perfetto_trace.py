# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a run as a Perfetto trace, for ui.perfetto.dev.

Tracks: the guest (a process); under it the vCPU with one slice per allocation and free, the
conversions as slices, the hypercalls as instants, marks as instants, the shared pages as a counter,
and for each migration a track with its passes. The clock is the trace's in ns; what happens within
an event has no times of its own, so its steps are set 1 ns apart, and an event never begins before
the one before has ended.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guestemu.abi.errors import InputError, MissingError
from guestemu.dma.cost import LEAF_PAGES, Conversion
from guestemu.dma.events import Alloc, Event, Mark
from guestemu.dma.leaves import GIB_PAGES
from guestemu.dma.migration import Migration

if TYPE_CHECKING:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket

FLUSH_PACKETS: Final = 4096
FIRST_MIGRATION: Final = 7
"""The track of the first migration; the others follow."""
_SEQUENCE: Final = 1
_NEEDS_STATE: Final = 2
_CLEARED: Final = 1


class Track(enum.IntEnum):
    """The tracks' uuids."""

    GUEST = 1
    VCPU = 2
    CONVERSIONS = 3
    HYPERCALLS = 4
    SHARED = 5
    MARKS = 6


_NAMES: Final = {
    Track.VCPU: "vCPU 0",
    Track.CONVERSIONS: "conversions",
    Track.HYPERCALLS: "hypercalls",
    Track.SHARED: "shared pages",
    Track.MARKS: "marks",
}


class PerfettoWriter:
    """An `Observer` that writes a Perfetto trace to `path`. Close it.

    `guest` names the process. MissingError without the perfetto package, InputError when the file
    cannot be written.
    """

    def __init__(self, path: Path, guest: str) -> None:
        try:
            from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
        except ImportError:
            raise MissingError(
                "--perfetto needs the perfetto package; install it with "
                "`pip install 'guestemu[analysis]'`"
            ) from None
        self._protos = protos
        try:
            self._path = path
            self._file = path.open("wb")
        except OSError as error:
            raise InputError(f"--perfetto {path}: {error.strerror}; give a file name") from None
        self._trace = protos.Trace()
        self._now = 0
        self._shared = 0
        self._is_open = False
        self._migrations = 0
        self._describe(guest)

    def _describe(self, guest: str) -> None:
        root = self._packet(0)
        root.sequence_flags = _CLEARED
        root.track_descriptor.uuid = Track.GUEST
        root.track_descriptor.process.pid = 1
        root.track_descriptor.process.process_name = guest
        for track, name in _NAMES.items():
            descriptor = self._packet(0).track_descriptor
            descriptor.uuid = track
            descriptor.parent_uuid = Track.GUEST
            descriptor.name = name
            if track is Track.SHARED:
                descriptor.counter.unit_name = "pages"

    def _packet(self, time_ns: int) -> TracePacket:
        packet = self._trace.packet.add()
        packet.timestamp = time_ns
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.sequence_flags = _NEEDS_STATE
        return packet

    def _event(self, track: int, kind: int, name: str = "", **values: int | str) -> None:
        self._now += 1
        event = self._packet(self._now).track_event
        event.track_uuid = track
        event.type = kind
        if name:
            event.name = name
        for key, value in values.items():
            note = event.debug_annotations.add()
            note.name = key
            if isinstance(value, int):
                note.uint_value = value & (1 << 64) - 1
            else:
                note.string_value = value

    def begin(self, event: Event, /) -> None:
        """See `Observer`."""
        self._end()
        self._now = max(self._now, event.time_ns)
        kinds = self._protos.TrackEvent
        if isinstance(event, Mark):
            self._event(Track.MARKS, kinds.TYPE_INSTANT, event.name, line=event.line)
        else:
            verb = "dma_alloc" if isinstance(event, Alloc) else "dma_free"
            self._event(
                Track.VCPU,
                kinds.TYPE_SLICE_BEGIN,
                f"{verb} {event.size}",
                device=event.device,
                driver=event.driver,
                dma_addr=event.dma_addr,
                line=event.line,
            )
            self._is_open = True
        if len(self._trace.packet) >= FLUSH_PACKETS:
            self._flush()

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        kinds = self._protos.TrackEvent
        direction = "encrypted" if conversion.private else "decrypted"
        self._event(
            Track.CONVERSIONS,
            kinds.TYPE_SLICE_BEGIN,
            f"set_memory_{direction}",
            gfn=conversion.gfn,
            pages=conversion.pages,
            splits=conversion.splits,
            pool=int(is_pool),
        )
        for pages, calls in (
            (1, conversion.calls_4k),
            (LEAF_PAGES, conversion.calls_2m),
            (GIB_PAGES, conversion.calls_1g),
        ):
            for _ in range(calls):
                self._event(Track.HYPERCALLS, kinds.TYPE_INSTANT, "MAP_GPA_RANGE", npages=pages)
        self._event(Track.CONVERSIONS, kinds.TYPE_SLICE_END)
        self._shared += -conversion.changed if conversion.private else conversion.changed
        self._now += 1
        event = self._packet(self._now).track_event
        event.track_uuid = Track.SHARED
        event.type = kinds.TYPE_COUNTER
        event.counter_value = self._shared

    def cleared(self, gfn: int, size: int, /) -> None:
        """See `Observer`."""

    def _end(self) -> None:
        if self._is_open:
            self._event(Track.VCPU, self._protos.TrackEvent.TYPE_SLICE_END)
            self._is_open = False

    def _flush(self) -> None:
        try:
            self._file.write(self._trace.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._trace.Clear()

    def add_migration(self, migration: Migration) -> None:
        """A track of its own with a slice for each pass; after the run."""
        kinds = self._protos.TrackEvent
        uuid = FIRST_MIGRATION + self._migrations
        self._migrations += 1
        descriptor = self._packet(0).track_descriptor
        descriptor.uuid = uuid
        descriptor.parent_uuid = Track.GUEST
        descriptor.name = f"migration, {migration.status.value} status"
        self._now, now = 0, self._now
        for number, done in enumerate(migration.passes, start=1):
            self._now = max(self._now, done.begin_ns)
            self._event(
                uuid,
                kinds.TYPE_SLICE_BEGIN,
                "blackout" if done.is_blackout else f"pass {number}",
                sent=done.sent,
                resent=done.resent,
                wrong_way=done.wrong_way,
                converted=done.converted,
            )
            self._now = max(self._now, done.end_ns - 1)
            self._event(uuid, kinds.TYPE_SLICE_END)
        self._now = now

    def close(self) -> None:
        """Ends the last slice and writes what is left."""
        try:
            self._end()
            self._flush()
        finally:
            self._file.close()
