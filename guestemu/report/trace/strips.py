# SPDX-License-Identifier: GPL-2.0-or-later
"""The strip of a run: events say what was asked for and told, views say what page tables, page
states and the host's record are after each operation.

A `StripRecorder` subscribes to a testbed and keeps a copy of each view after an operation that
changed it. A strip is made of that afterwards, for the frames that the run was about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, U64_MASK, Gpa, to_signed
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.tdx import VMCALL_SUCCESS
from guestemu.checks.base import OpView
from guestemu.checks.page_enc import NUMBERS
from guestemu.events.base import Event
from guestemu.events.exits import HypercallExit, MapGpaRangeExit
from guestemu.events.memory import LeafChange
from guestemu.events.snp import PageStateChange
from guestemu.events.tdx import MapGpaCall
from guestemu.guest.base import Guest
from guestemu.host.base import Host
from guestemu.machine.cache import peek
from guestemu.machine.rmp import ASSIGNED, VALIDATED, Rmp
from guestemu.machine.rmp import FOREIGN as RMP_FOREIGN
from guestemu.machine.sept import ACCEPTED
from guestemu.machine.sept import PENDING as SEPT_PENDING
from guestemu.program.op_text import format_op
from guestemu.program.ops import REGIONS, SPECS, Op, OpKind
from guestemu.report.strip import (
    FOREIGN,
    NO,
    NOTHING,
    PENDING,
    PRIVATE,
    REFUSED,
    SHARED,
    UNMAPPED,
    YES,
    Column,
    Strip,
    StripRow,
)
from guestemu.report.trace.places import Places
from guestemu.report.trace.reasons import (
    AFTERWARDS,
    ALIAS,
    ASKED,
    IF_MIGRATED,
    READABLE,
    RECORD,
    SENT,
    STATE,
    TABLES,
    TOLD,
    FrameRecords,
)
from guestemu.runner.testbed import Testbed

_MAX_FRAMES: Final = 4096
"""Frames looked at one by one; of longer ranges only the ends and what disagrees."""
_EDGE: Final = 4
_SHOWN_BYTES: Final = 16
_COMPARED: Final = 64
"""Frames of a range whose content is compared after a migration."""
_MIGRATIONS: Final = frozenset({OpKind.MIGRATE_START, OpKind.MIGRATE_HANDLER})
_VA_MASK: Final = (1 << 48) - 1
_STATE: Final = 3
_SEPT_WORDS: Final = {ACCEPTED: PRIVATE, SEPT_PENDING: PENDING}
_RMP_WORDS: Final = {VALIDATED: PRIVATE, ASSIGNED: PENDING, RMP_FOREIGN: FOREIGN}


@runtime_checkable
class _HasRmp(Protocol):
    @property
    def rmp(self) -> Rmp | None:
        """The reverse map table; None for a guest without SNP."""


class Said(msgspec.Struct, frozen=True):
    """A range that operation `op` asked to convert, or whose status the host was told; `is_done`:
    the call returned 0, or the host answered 0."""

    op: int
    gfn: int
    pages: int
    private: bool
    is_done: bool


class StripViews(msgspec.Struct, frozen=True, kw_only=True):
    """What is after an operation. `states` has a code per frame as its table has it,
    or is None for a guest without page states; `sent` how frames were sent so far, `kept` whether
    the destination reads what the guest had when it left (empty before that)."""

    tables: bitarray
    alias: bitarray
    holes: frozenset[int]
    record: bitarray
    states: bytes | None
    sent: dict[int, bool]
    kept: dict[int, bool]


class NotedStep(msgspec.Struct, frozen=True):
    """One operation that ended: its views, the ranges it touched (first frame, pages), and the
    frames it sent."""

    op: Op
    views: StripViews
    touched: tuple[tuple[int, int], ...]
    has_alias: bool
    sent: frozenset[int]


class Moved(msgspec.Struct, frozen=True):
    """16 bytes of a frame from `offset` on, where the two guests first read something else: what
    the one that left reads, and the one that arrived."""

    offset: int
    before: bytes
    after: bytes


class StripRecorder:
    """Notes a run of `testbed`; make it before the run, ask it for strips afterwards."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self.first: StripViews | None = None
        self.steps: list[NotedStep] = []
        self.asked: list[Said] = []
        self.told: list[Said] = []
        self.moved: dict[int, Moved] = {}
        """Of the frames that the run was about, at the end of its migration."""
        self._sends: Counter[int] = Counter()
        self.guest = testbed.guest
        self.host = testbed.host
        testbed.observe = self._observe

    def _observe(self, view: OpView) -> None:
        guest, host = view.guest, view.host
        if self.first is None:
            self.first = StripViews(
                tables=view.private_before.copy(),
                alias=guest.leaf_map.alias.copy(),
                holes=frozenset(),
                record=view.host_before.copy(),
                states=_states(guest),
                sent={},
                kept={},
            )
        touched = [*self._note_asked(view), *self._note_told(view.index, view.events, host)]
        touched += _places(view.events)
        if view.op.kind in _MIGRATIONS and view.op.arguments[0]:
            first = view.guest.gpa(view.op.region, view.op.page) >> PAGE_SHIFT
            touched.append((first, view.op.arguments[0]))
        is_alias = REGIONS[view.op.region].alias is not None and SPECS[view.op.kind].has_page
        if is_alias:
            touched.append((view.guest.gpa(view.op.region, view.op.page) >> PAGE_SHIFT, 1))
        self.steps.append(
            NotedStep(
                view.op,
                self._views(self._testbed.guest, self._testbed.host),
                tuple(touched),
                is_alias
                or any(isinstance(event, LeafChange) and event.is_alias for event in view.events),
                self._sent_now(),
            )
        )

    def _sent_now(self) -> frozenset[int]:
        """The frames that were sent since this was asked last."""
        sends = self._testbed.migration.sends
        if not sends or sends.total() == self._sends.total():
            return frozenset()
        new = frozenset(gfn for gfn, count in sends.items() if count != self._sends[gfn])
        self._sends = sends.copy()
        return new

    def _note_asked(self, view: OpView) -> Iterator[tuple[int, int]]:
        if view.frames is None or not view.frames[1]:
            return
        value = view.outcome.value
        is_done = value is not None and to_signed(value, 32) == 0
        self.asked.append(Said(view.index, *view.frames, view.wants_private, is_done))
        yield view.frames

    def _note_told(
        self, index: int, events: Sequence[Event], host: Host
    ) -> Iterator[tuple[int, int]]:
        number = NUMBERS.get(host.contract, KVM_HC_MAP_GPA_RANGE)
        for event in events:
            if isinstance(event, MapGpaCall) and event.status == VMCALL_SUCCESS:
                gfn, pages = event.gpa >> PAGE_SHIFT, event.size >> PAGE_SHIFT
                if gfn < len(self.guest.leaf_map.private) and pages:
                    self.told.append(Said(index, gfn, pages, event.private, True))
                    yield (gfn, pages)
            if not isinstance(event, HypercallExit) or event.nr != number or event.cpl:
                continue
            has_attributes = isinstance(event, MapGpaRangeExit) or host.contract not in NUMBERS
            private = bool(
                event.args[2] & (MAP_GPA_RANGE_ENCRYPTED if has_attributes else U64_MASK)
            )
            gfn, pages = event.args[0] >> PAGE_SHIFT, event.args[1]
            is_taken = event.ret is not None and (
                not event.ret or (not has_attributes and event.ret < 2)
            )
            if gfn < len(self.guest.leaf_map.private) and pages:
                self.told.append(Said(index, gfn, pages, private, is_taken))
                yield (gfn, pages)

    def _views(self, guest: Guest, host: Host) -> StripViews:
        last = self.steps[-1].views if self.steps else self.first
        migration = self._testbed.migration
        tables, record = guest.leaf_map.private, host.private_map()
        states = _states(guest)
        if (
            last is not None
            and not migration.sent
            and (migration.left is None or last.kept)
            and last.tables == tables
            and last.record == record
            and last.holes == guest.leaf_map.holes
            and last.states == states
        ):
            return last
        kept = last.kept if last is not None else {}
        left = migration.left
        if left is not None and not kept:
            self.moved = {gfn: _compare(left, guest, gfn) for gfn in self._kept_frames()}
            kept = {gfn: one.before == one.after for gfn, one in self.moved.items()}
        return StripViews(
            tables=tables.copy(),
            alias=guest.leaf_map.alias.copy(),
            holes=frozenset(guest.leaf_map.holes),
            record=record.copy(),
            states=states,
            sent=dict(migration.sent) if len(migration.sent) <= _MAX_FRAMES else {},
            kept=kept,
        )

    def _kept_frames(self) -> set[int]:
        """The frames whose content is compared: those that the run touched."""
        touched = {
            frame
            for step in self.steps
            for gfn, pages in step.touched
            for frame in range(gfn, gfn + min(pages, _COMPARED))
        }
        return {gfn for gfn in touched if gfn < len(self.guest.leaf_map.private)}

    # From what was noted to the strip ------------------------------------------------------------

    def strip(self, places: Places, op: int | None = None) -> Strip | None:
        """The strip after operation `op` (default: the last that ended); None where the run was
        about no frame until then."""
        if not self.steps or self.first is None:
            return None
        last = len(self.steps) - 1 if op is None else min(op, len(self.steps) - 1)
        frames = self._frames(last)
        if not frames:
            return None
        drawing = _Drawing(self, last, frames, self.first)
        return drawing.strip(places)

    def strip_of(self, op: int, places: Places) -> Strip | None:
        """The strip after operation `op`, if that touched a frame."""
        if op >= len(self.steps):
            return None
        step = self.steps[op]
        is_moved = op > 0 and step.views is not self.steps[op - 1].views
        return self.strip(places, op) if step.touched or is_moved else None

    def _frames(self, last: int) -> list[int]:
        """The frames to draw: those touched, and one more on either side."""
        assert self.first is not None
        total = len(self.first.tables)
        chosen: set[int] = set()
        ranges = [one for step in self.steps[: last + 1] for one in step.touched]
        for gfn, pages in ranges:
            end = min(gfn + pages, total)
            if end - gfn > _MAX_FRAMES:
                for first, stop in ((gfn, gfn + _EDGE), (end - _EDGE, end)):
                    chosen.update(range(max(first - 1, 0), min(stop + 1, total)))
            elif gfn < total:
                chosen.update(range(max(gfn - 1, 0), min(end + 1, total)))
        return sorted(chosen)[: 4 * _MAX_FRAMES]


class _Drawing:
    """One strip in the making: a word per row and frame, then columns of equal frames."""

    def __init__(
        self, noted: StripRecorder, last: int, frames: list[int], first: StripViews
    ) -> None:
        self._last = last
        self._op = noted.steps[last].op
        self._frames = frames
        self._views = views = noted.steps[last].views
        self._asked = [one for one in noted.asked if one.op <= last]
        self._told = [one for one in noted.told if one.op <= last]
        self._first = first
        self._state_words = _RMP_WORDS if noted.guest.td is None else _SEPT_WORDS
        self._has_alias = any(step.has_alias for step in noted.steps[: last + 1])
        self._alias = noted.guest.leaf_map.windows[1]
        direct = noted.guest.leaf_map.windows[0]
        self._direct = (direct.gva & _VA_MASK) - (direct.gfn << PAGE_SHIFT)
        self._has_record = noted.host.records_conversions
        self._is_sev = noted.guest.machine.config.cbit is not None and views.states is None

    def strip(self, places: Places) -> Strip:
        frames = self._frames
        names, words = self._words()
        reasons = [self._reasons(gfn, dict(zip(names, cells, strict=True))) for gfn, cells in words]
        columns: list[Column] = []
        cells: list[tuple[str, ...]] = []
        why: list[tuple[str, ...]] = []
        start = 0
        for place in range(1, len(frames) + 1):
            if (
                place < len(frames)
                and frames[place] not in places.borders
                and self._is_alike(frames[place - 1], frames[place])
                and words[place][1] == words[start][1]
                and reasons[place] == reasons[start]
            ):
                continue
            pages = frames[place - 1] + 1 - frames[start]
            columns.append(Column(frames[start], pages, places.frame(frames[start])))
            cells.append(words[start][1])
            why.append(reasons[start])
            start = place
        rows = tuple(
            StripRow(name, tuple(one[index] for one in cells)) for index, name in enumerate(names)
        )
        return Strip(
            op=self._last,
            after=format_op(self._op),
            columns=tuple(columns),
            rows=rows,
            disagree=tuple(map(bool, why)),
            sentences=_sentences(columns, why, places),
        )

    def _is_alike(self, one: int, other: int) -> bool:
        """Whether the frames between two that are drawn are as both of them: none, or left out of a
        long range that is all in one state. Ends of what was asked for and told are never left
        out."""
        if other == one + 1:
            return True
        views = self._views
        if views.sent or views.kept or views.holes or self._has_alias:
            return False
        maps = (views.tables[one : other + 1], views.record[one : other + 1])
        states = b"" if views.states is None else views.states[one : other + 1]
        return all(one.all() or not one.any() for one in maps) and len(set(states)) < 2

    def _words(self) -> tuple[list[str], list[tuple[int, tuple[str, ...]]]]:
        views = self._views
        is_converted = bool(self._asked) or views.tables != self._first.tables
        rows: list[tuple[str, Sequence[str]]] = []
        frames = self._frames
        states: list[str] = []
        if self._asked:
            rows.append((ASKED, self._last_words(self._asked, "")))
        if is_converted or views.sent or views.states is not None:
            rows.append((TABLES, [self._table_word(gfn) for gfn in frames]))
        if self._has_alias and self._alias is not None:
            window = self._alias
            rows.append(
                (
                    ALIAS,
                    [
                        _word(views.alias[gfn - window.gfn])
                        if 0 <= gfn - window.gfn < window.pages
                        else NOTHING
                        for gfn in frames
                    ],
                )
            )
        if views.states is not None:
            states += [self._state_word(views.states[gfn]) for gfn in frames]
            rows.append((STATE, states))
        rows.append((TOLD, self._last_words(self._told, REFUSED)))
        rows.append((RECORD, [_word(views.record[gfn]) for gfn in frames]))
        if views.sent:
            rows.append(
                (SENT, [_word(views.sent[g]) if g in views.sent else NOTHING for g in frames])
            )
        if views.kept:
            words = {True: YES, False: NO}
            rows.append(
                (AFTERWARDS, [words[views.kept[g]] if g in views.kept else "" for g in frames])
            )
        elif is_converted and self._is_sev and self._has_record and not views.sent:
            words = {True: YES, False: NO}
            arrives = [words[bool(views.tables[g] == views.record[g])] for g in frames]
            touched = [
                self._is_changed(g)
                or any(one.gfn <= g < one.gfn + one.pages for one in self._asked)
                for g in frames
            ]
            rows.append(
                (
                    IF_MIGRATED,
                    [one if is_so else "" for one, is_so in zip(arrives, touched, strict=True)],
                )
            )
        elif views.states is not None:
            readable = [self._table_word(g) == states[n] for n, g in enumerate(frames)]
            rows.append((READABLE, [YES if is_so else NO for is_so in readable]))
        names = [name for name, _ in rows]
        return names, [
            (gfn, tuple(cells[place] for _, cells in rows)) for place, gfn in enumerate(frames)
        ]

    def _last_words(self, said: Sequence[Said], refused: str) -> list[str]:
        """For each frame the status in the last range that covers it, with `refused` behind one
        that was not done."""
        found = dict.fromkeys(self._frames, NOTHING)
        for one in said:
            word = _word(one.private) + ("" if one.is_done else refused)
            if one.pages <= len(found):
                frames: Iterable[int] = range(one.gfn, one.gfn + one.pages)
            else:
                frames = (gfn for gfn in found if one.gfn <= gfn < one.gfn + one.pages)
            found.update((gfn, word) for gfn in frames if gfn in found)
        return list(found.values())

    def _is_changed(self, gfn: int) -> bool:
        """Whether page tables or record say something else of a frame than before the run."""
        views, first = self._views, self._first
        return bool(
            views.tables[gfn] != first.tables[gfn] or views.record[gfn] != first.record[gfn]
        )

    def _state_word(self, code: int) -> str:
        return self._state_words.get(code & _STATE, SHARED)

    def _table_word(self, gfn: int) -> str:
        if self._direct + (gfn << PAGE_SHIFT) in self._views.holes:
            return UNMAPPED
        return _word(self._views.tables[gfn])

    def _reasons(self, gfn: int, cells: dict[str, str]) -> tuple[str, ...]:
        """How the records of a frame disagree; empty where they do not."""
        records = FrameRecords(
            cells=cells,
            is_done=self._is_done(gfn),
            is_changed=self._is_changed(gfn),
            has_record=self._has_record,
        )
        return records.reasons()

    def _is_done(self, gfn: int) -> bool:
        """Whether the last conversion that covers the frame said that it succeeded."""
        covering = [one for one in self._asked if one.gfn <= gfn < one.gfn + one.pages]
        return bool(covering) and covering[-1].is_done


def _sentences(
    columns: Sequence[Column], why: Sequence[tuple[str, ...]], places: Places
) -> tuple[str, ...]:
    """What disagrees, one sentence for the frames that share their reasons."""
    found: dict[tuple[str, ...], list[str]] = {}
    for column, reasons in zip(columns, why, strict=True):
        if reasons:
            found.setdefault(reasons, []).append(places.frame(column.gfn, column.pages))
    sentences = [
        f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: "
        f"{', '.join(reasons)}."
        for reasons, names in found.items()
    ]
    return tuple(sentences) or ("All records agree.",)


def _word(private: int | bool) -> str:
    return PRIVATE if private else SHARED


def _states(guest: Guest) -> bytes | None:
    """The page state of every frame as its table dumps it; None for a guest that has none."""
    if guest.td is not None:
        return guest.td.sept.dump()
    rmp = guest.rmp if isinstance(guest, _HasRmp) else None
    return None if rmp is None else rmp.states(0, rmp.frames)


def _places(events: Iterable[Event]) -> Iterator[tuple[int, int]]:
    """Where leaves or page states changed."""
    for event in events:
        if isinstance(event, LeafChange | PageStateChange):
            yield (event.gfn, event.pages)


def _compare(left: Guest, arrived: Guest, gfn: int) -> Moved:
    """What both guests read in a frame, each by its own page tables."""
    gpa = Gpa(gfn << PAGE_SHIFT)
    before, after = (
        peek(one.machine.ram, gpa, PAGE_SIZE, bool(one.leaf_map.private[gfn]))
        for one in (left, arrived)
    )
    differs = next((place for place in range(PAGE_SIZE) if before[place] != after[place]), 0)
    offset = min(differs & ~0xF, PAGE_SIZE - _SHOWN_BYTES)
    return Moved(
        offset, before[offset : offset + _SHOWN_BYTES], after[offset : offset + _SHOWN_BYTES]
    )
