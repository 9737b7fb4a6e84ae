# SPDX-License-Identifier: GPL-2.0-or-later
"""The race of a program with a migration: the program is run, and run again in other orders, to
find the step after which the page is lost.

That step is found by experiment: of what stands behind step k the guest's steps are made one after
the other, at each point between the host's in turn. If the page is lost wherever they are, it is
lost after step k (the order model, which knows all orders, finds the same step: a test holds them
together). If it is lost for k = 0, it is not a race: then the guest's steps behind k are left out,
to find the one that dooms the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.abi.names import command_line
from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT
from guestemu.program.host_specs import LINK_SPECS, MIGRATION_SPECS
from guestemu.program.op_text import format_op
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.program.program import Program
from guestemu.report.document import Chapter, Code, Document, Paragraph, Picture
from guestemu.report.race import GUEST, HOST, Race, RaceStep
from guestemu.report.strip import NO, Strip
from guestemu.report.trace.places import Places
from guestemu.report.trace.reasons import AFTERWARDS, SENT, TABLES
from guestemu.report.trace.run import Run, check_program, decisive_strip, run_in
from guestemu.report.trace.strips import NotedStep, StripRecorder
from guestemu.runner.testbed import Testbed, build_testbed

MAX_OPS: Final = 64
"""Longer programs are run many times for each operation, so there is a limit."""

_LOST: Final = frozenset({LOST_STRICT, LOST_DEFINED})
_STARTS: Final = frozenset({OpKind.MIGRATE_START, OpKind.MIGRATE_HANDLER})
_WORDS: Final[Mapping[tuple[OpKind, bool | None], str]] = {
    (OpKind.HOST_STATUS_COPY, None): "copies its record of shared pages",
    (OpKind.HOST_DIRTY_FETCH, True): "fetches and clears the dirty log",
    (OpKind.HOST_DIRTY_FETCH, False): "fetches the dirty log",
    (OpKind.HOST_DIRTY_CLEAR, None): "clears the dirty log",
    (OpKind.HOST_SEND, True): "sends by its record as it is now",
    (OpKind.HOST_SEND, False): "sends by the copy",
    (OpKind.MIGRATE_START, None): "starts a migration; {page} is its first page",
    (OpKind.MIGRATE_STOP, None): "stops the guest; the destination runs it",
    (OpKind.TOUCH_CBIT, True): "makes {page} private in its page tables",
    (OpKind.TOUCH_CBIT, False): "makes {page} shared in its page tables",
    (OpKind.WRITE, None): "writes {value} to {page}",
    (OpKind.READ, None): "reads {page}",
}
"""What operations do, by whether their first argument is zero where that matters."""

_STATUS: Final = {True: "private", False: "shared"}


def has_migration(program: Program) -> bool:
    """Whether a race can be drawn of `program`."""
    return any(op.kind in _STARTS for op in program.ops) and len(program.ops) <= MAX_OPS


def race_of(program: Program) -> tuple[Race, Run]:
    """The race of `program`, and its run.

    Raises `InputError` for a program without a migration, or with more than `MAX_OPS` operations.
    """
    check_program(program)
    if not any(op.kind in _STARTS for op in program.ops):
        raise InputError("no migration in this program; add migrate_start and migrate_stop to it")
    if len(program.ops) > MAX_OPS:
        raise InputError(f"{len(program.ops)} operations; a race is drawn of at most {MAX_OPS}")
    testbed = build_testbed(program.header)
    try:
        recorder = StripRecorder(testbed)
        run = run_in(testbed, program)
        run = msgspec.structs.replace(run, strip=decisive_strip(recorder, run))
        lost_at, is_race = _lost_at(testbed, program) if _is_lost(run) else (None, False)
        return _race(program, run, recorder, (lost_at, is_race)), run
    finally:
        testbed.close()


def race_document(name: str, race: Race, run: Run) -> Document:
    """What a page shows of the race of the program `name`: the race, then the strip of its run."""
    title = "The guest keeps its pages"
    if race.lost_at is not None:
        title = f"{race.place} is lost in a migration"
    chapters = [
        Chapter("", (Paragraph(race.sentence), Paragraph(f"Program: {name}")), is_page_only=True),
        Chapter("The race", (Picture("The race", race),)),
    ]
    if run.strip is not None:
        chapters.append(Chapter("The strip", (Picture("The strip", run.strip),)))
    again = Code(command_line("race", name), True)
    return Document(title, (*chapters, Chapter("See it again", (again,), is_page_only=True)))


def _is_host(op: Op) -> bool:
    return op.kind in MIGRATION_SPECS or op.kind in LINK_SPECS or SPECS[op.kind].by_host


def _is_lost(run: Run) -> bool:
    return any(found.check in _LOST for found in run.outcome.violations)


def _lost_at(testbed: Testbed, program: Program) -> tuple[int, bool]:
    """See the module's docstring: the index of the operation, and whether it is a race."""
    testbed.observe = None
    for has_guest in (True, False):
        place = len(program.ops)
        while place and all(
            _is_lost(run_in(testbed, other)) for other in _reordered(program, place - 1, has_guest)
        ):
            place -= 1
        if place:
            return place - 1, has_guest
    return 0, False


def _reordered(program: Program, place: int, has_guest: bool) -> Iterator[Program]:
    """`program` with the guest's steps from `place` on in one piece, at each point between the
    host's, the last first; or once without them. Reads behind the end of the migration stay there,
    what else the guest does behind it may come before."""
    ops = program.ops
    stop = next((n for n, op in enumerate(ops) if op.kind is OpKind.MIGRATE_STOP), len(ops))
    middle, end = ops[place : max(place, stop)], ops[max(place, stop) :]
    guests = tuple(op for op in middle if not _is_host(op)) if has_guest else ()
    hosts = tuple(op for op in middle if _is_host(op))
    points = range(len(hosts), -1, -1) if guests else (0,)
    orders = [(*hosts[:point], *guests, *hosts[point:], *end) for point in points]
    late = tuple(op for op in end if not _is_host(op) and op.kind is not OpKind.READ)
    if has_guest and late and place <= stop:
        left = tuple(op for op in end if op not in late)
        orders += (
            (*hosts[:point], *guests, *late, *hosts[point:], *left)
            for point in range(len(hosts), -1, -1)
        )
    for order in orders:
        yield msgspec.structs.replace(program, ops=(*ops[:place], *order))


def _race(
    program: Program, run: Run, recorder: StripRecorder, lost: tuple[int | None, bool]
) -> Race:
    has_cpus = any(op.vcpu for op in program.ops)
    steps: list[RaceStep] = []
    band, is_open = 0, False
    for index, op in enumerate(program.ops):
        is_host = _is_host(op)
        begins = op.kind in (OpKind.HOST_DIRTY_FETCH, OpKind.HOST_STATUS_COPY)
        if begins and not is_open:
            band, is_open = band + 1, True
        lane = HOST if is_host else f"{GUEST} CPU {op.vcpu}" if has_cpus else GUEST
        effects = _effects(recorder, index, run.places)
        steps.append(RaceStep(index, lane, _words(op), band if is_open else 0, effects))
        if op.kind is OpKind.HOST_SEND:
            is_open = False
    moved = recorder.moved
    gfn = next((gfn for gfn, one in moved.items() if one.before != one.after), None)
    gfn = next(iter(moved), None) if gfn is None else gfn
    shown = moved[gfn] if gfn is not None else None
    place = run.places.frame(gfn) if gfn is not None else ""
    return Race(
        steps=tuple(steps),
        lost_at=lost[0],
        place=place,
        offset=0 if shown is None else shown.offset,
        before="" if shown is None else shown.before.hex(" "),
        after="" if shown is None else shown.after.hex(" "),
        sentence=_sentence(steps, lost, place, run.strip),
    )


def _words(op: Op) -> str:
    """What an operation does, for a reader who does not know the program's language."""
    page = f"{op.region.name}[{op.page}]"
    first = op.arguments[0] if op.arguments else 0
    if op.kind is OpKind.HYPERCALL:
        return _told(op, page) or format_op(op)
    words = _WORDS.get((op.kind, bool(first))) or _WORDS.get((op.kind, None))
    return words.format(page=page, value=hex(first)) if words else format_op(op)


def _told(op: Op, page: str) -> str:
    """A notification about one page in words; empty for other calls."""
    nr, gpa, pages, attributes, *_ = op.arguments
    if nr != KVM_HC_MAP_GPA_RANGE or pages != 1:
        return ""
    status = _STATUS[bool(attributes & MAP_GPA_RANGE_ENCRYPTED)]
    return f"tells the host: {page if op.has_page else hex(gpa)} is {status}"


def _sentence(
    steps: list[RaceStep], lost: tuple[int | None, bool], place: str, strip: Strip | None
) -> str:
    lost_at, is_race = lost
    if lost_at is None:
        return "The guest reads at the destination what it wrote."
    step = f"operation {steps[lost_at].op} ({steps[lost_at].text})"
    head = f"{place} is lost: {_why(strip)}."
    if is_race:
        return f"{head} It is a race: after {step} no timing of the other steps saves the page."
    return f"{head} It is not a race: {step} is enough, whatever the timing."


def _why(strip: Strip | None) -> str:
    """Why the first frame is lost whose content did not arrive."""
    rows = {} if strip is None else {row.name: row.cells for row in strip.rows}
    columns = [n for n, word in enumerate(rows.get(AFTERWARDS, ())) if word == NO]
    if columns and SENT in rows:
        sent, tables = rows[SENT][columns[0]], rows[TABLES][columns[0]]
        if sent and sent != tables:
            return f"the host sent it as {sent}, the guest reads it as {tables}"
    return "the host did not send what the guest wrote last"


def _effects(recorder: StripRecorder, index: int, places: Places) -> tuple[str, ...]:
    """What operation `index` changed of the frames that the run is about."""
    if index >= len(recorder.steps) or recorder.first is None:
        return ()
    now: NotedStep = recorder.steps[index]
    before = recorder.steps[index - 1].views if index else recorder.first
    found = []
    views = now.views
    frames = sorted({gfn for step in recorder.steps for gfn, _ in step.touched})[:4]
    for gfn in frames:
        if gfn >= len(views.tables):
            continue
        name = places.frame(gfn)
        if views.tables[gfn] != before.tables[gfn]:
            found.append(f"{name}: page tables {_STATUS[bool(views.tables[gfn])]}")
        if views.record[gfn] != before.record[gfn]:
            found.append(f"{name}: host's record {_STATUS[bool(views.record[gfn])]}")
        if now.op.kind is OpKind.HOST_STATUS_COPY:
            found.append(f"{name}: {_STATUS[bool(views.record[gfn])]} in the copy")
        if gfn in now.sent and gfn in views.sent:
            found.append(f"{name}: sent as {_STATUS[views.sent[gfn]]}")
        elif now.op.kind is OpKind.HOST_SEND:
            found.append(f"{name}: not in the log, not sent")
    return tuple(found)
