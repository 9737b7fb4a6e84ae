# SPDX-License-Identifier: GPL-2.0-or-later
"""Cards of findings: each finding's program is run once more, for the sentence, the strip and the
steps that a reader needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

import guestemu
from guestemu.abi.addresses import to_signed
from guestemu.abi.errors import GuestemuError
from guestemu.abi.facts import canonical_id, facts, sentences
from guestemu.abi.files import read_regular
from guestemu.abi.hypercalls import answer_text
from guestemu.abi.names import plural
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.screen import duration
from guestemu.campaign.triage.explain import run_command
from guestemu.checks.base import Violation
from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT
from guestemu.host.permission import Permissions, shown_path
from guestemu.program.op_text import format_op
from guestemu.program.program import Header, Program
from guestemu.program.text import format_text, load_program
from guestemu.report.card import Card, CitedRule
from guestemu.report.race import Race
from guestemu.report.strip import NO, REFUSED, Strip
from guestemu.report.trace.explain import demand, explain
from guestemu.report.trace.places import Places
from guestemu.report.trace.races import has_migration, race_of
from guestemu.report.trace.reasons import AFTERWARDS, RECORD, SENT, TABLES, TOLD
from guestemu.report.trace.run import Run, run_program
from guestemu.report.trace.summary import tell_op
from guestemu.runner.testbed import with_plugin

MAX_RUNS: Final = 24
"""Findings whose programs are run for a page; the others are shown as they were filed."""

_HOST: Final = frozenset(
    {
        *("record", "resources", "results", "host-failed", "migration-control", "qemu-status"),
        *("sev-firmware", "psc-bounds", "psc-unasked", "guest-memory"),
    }
)
_GUEST: Final = frozenset({"frames", "free-pages", "progress"})
_ABOUT_RECORDS: Final = frozenset({"status", "record", "ready", "td", LOST_STRICT, LOST_DEFINED})
_UNDECIDED: Final = "guest or host: see the steps"
_WENT_ON: Final = "the guest's defect: it went on after the host refused"
_SAID_NOTHING: Final = "the guest's defect: it did not tell the host"
_HEADS: Final = {
    "progress": "The operation does not end: ",
    "mirror_stopped": "The migration handler does not answer: ",
}
"""What the words of these checks are about, put before them."""
_FEW: Final = 5
"""More lines of host code that run only when something is wrong are a whole path through it."""
_SHOWN_PLACES: Final = 12
_GPA: Final = re.compile(r"\bGPA (0x[0-9a-f]+)\b")
_ANSWERS: Final = re.compile(r"was answered (0x[0-9a-f]+), expected (0x[0-9a-f]+)")
_ADDRESS: Final = re.compile(r"\b0x[0-9a-f]{16}\b")
_OWN: Final = f"{Path(guestemu.__file__).parent}/"


def owner_of(violation: Violation, strip: Strip | None, places: Sequence[str] = ()) -> str:
    """Whose defect a violation is, as far as the check and the strip can say. `places` are the
    lines of host code that run only then; one is named where they are few and a user's."""
    said = " ".join(strip.sentences) if strip is not None else ""
    if violation.check in (LOST_STRICT, LOST_DEFINED):
        return _owner_of_loss(strip)
    if "(it refused)" in said and violation.check == "status":
        return _WENT_ON
    if places and len(places) <= _FEW and not places[0].startswith(_OWN):
        return f"the host's defect, {':'.join(shown_place(places[0]).split(':')[:2])}"
    if violation.check in _HOST or places:
        return "the host's defect"
    if violation.check in _GUEST:
        return "the guest's defect"
    if "its record says" in said:
        return "the host's defect: its record is not what it was told"
    if "(it refused)" in said:
        return _WENT_ON
    if "host's record" in said and violation.check == "status":
        return _SAID_NOTHING
    return _UNDECIDED


def _owner_of_loss(strip: Strip | None) -> str:
    """Whose defect it is that a page did not arrive: the records of the first such frame say it."""
    if strip is None:
        return _UNDECIDED
    rows = {row.name: row.cells for row in strip.rows}
    lost = [n for n, word in enumerate(rows.get(AFTERWARDS, ())) if word == NO]
    if not lost or TABLES not in rows:
        return _UNDECIDED
    tables, told, record = (rows[name][lost[0]] for name in (TABLES, TOLD, RECORD))
    sent = rows[SENT][lost[0]] if SENT in rows else ""
    if record != tables:
        if told.endswith(REFUSED):
            return _WENT_ON
        return _SAID_NOTHING if told != tables else "the host's defect: it forgot what it was told"
    if sent and sent != tables:
        return "the migration's defect: the page went by an old copy of the record"
    return "the migration's defect: what was written last was not sent"


def shown_place(place: str) -> str:
    """A line of host code for people: its path as short as it can be."""
    return shown_path(f"guestemu/{place.removeprefix(_OWN)}" if place.startswith(_OWN) else place)


def shown_places(places: Sequence[str]) -> tuple[str, ...]:
    """The first lines of host code, and how many more there are; none of a model of guestemu's
    that ran many."""
    if len(places) > _SHOWN_PLACES and places[0].startswith(_OWN):
        return ()  # a whole path through one of guestemu's models
    found = tuple(map(shown_place, places[:_SHOWN_PLACES]))
    more = len(places) - len(found)
    return (*found, f"and {more} more lines") if more else found


def headline_of(violation: Violation, strip: Strip | None, pages: Places | None = None) -> str:
    """The finding in one sentence; frames and addresses of regions by the names of `pages`, which
    are those of the strip."""
    if strip is not None and any(strip.disagree) and violation.check in _ABOUT_RECORDS:
        return f"{strip.sentences[0][:1].upper()}{strip.sentences[0][1:]}"
    head = _HEADS.get(violation.check, "")
    text = re.sub(r"^1 pages now map ", "1 page now maps ", violation.message)
    text = _ANSWERS.sub(_signed_answers, text)
    if pages is not None:
        text = _GPA.sub(lambda match: pages.address(int(match[1], 16)) or match[0], text)
        text = _ADDRESS.sub(lambda match: pages.virtual(int(match[0], 16)) or match[0], text)
    return f"{head}{text}." if head else f"{text[:1].upper()}{text[1:]}."


def _signed_answers(match: re.Match[str]) -> str:
    """Answers with the names of errors: 0xffffffea is -22 (-KVM_EINVAL)."""
    got, wanted = (
        answer_text(to_signed(value, 64 if value >> 32 else 32))
        for value in (int(match[1], 16), int(match[2], 16))
    )
    return f"was answered {got}, expected {wanted}"


def rules_of(citation: str) -> tuple[CitedRule, ...]:
    """The facts of a citation, with their texts."""
    known = facts()
    found = []
    for key, sentence in sentences(citation):
        fact = known[canonical_id(key)]
        found.append(CitedRule(key, sentence, _plain(fact.text), _plain(fact.source)))
    return tuple(found)


def _plain(text: str) -> str:
    """Markdown without its marks."""
    return re.sub(r"[*`]", "", text)


def steps_of(run: Run) -> tuple[str, ...]:
    """The run step by step, as `guestemu run` prints it."""
    lines = []
    for index, op in enumerate(run.program.ops):
        told = tell_op(run, index)
        lines.append(f"{index:>3}  {format_op(op)}")
        lines += (f"       {line}" for line in told.lines)
        lines += (f"     ! {first}" for first, *_ in told.violations)
    return tuple(lines)


def cards_of(
    root: Path,
    counts: Iterable[FindingCount],
    permissions: Permissions,
    advance: Callable[[], None],
) -> tuple[Card, ...]:
    """The cards of the campaign in `root`, those met most first. `advance` is called after each."""
    cards: list[Card] = []
    for found in sorted(counts, key=lambda found: (-found.count, found.key)):
        path = root / "findings" / f"{found.key}.prog"
        cards.append(_card(path, found, permissions, len(cards) < MAX_RUNS))
        advance()
    return tuple(cards)


def _card(path: Path, count: FindingCount, permissions: Permissions, is_run: bool) -> Card:
    met = f"met {plural(count.count, 'time')}, first after {duration(count.first_seen_s)}"
    text, state, run, race = "", "shown", None, None
    try:
        if not path.is_symlink():  # a page shows what is in the directory, and nothing else
            text = _bare(read_regular(path).decode("utf-8", "backslashreplace"))
            program = load_program(path) if is_run else None
            if program is not None:
                run, race = _run(with_plugin(program, permissions, path))
    except (GuestemuError, OSError) as error:
        state = f"error: {error}"
    violation = _violation(run, count.check)
    if run is not None and violation is None:
        state = "gone"
    strip = None if run is None else run.strip
    places = _places(path)
    header = run.program.header if run is not None else Header()
    if violation is None:
        headline = f"A violation of {count.check}; its program shows nothing wrong any more."
        if run is None:
            headline = f"A violation of {count.check}; its program was not run for this page."
        violation = Violation(count.check, 0, "")
    else:
        headline = headline_of(violation, strip, None if run is None else run.places)
        if race is not None and race.lost_at is not None:
            headline = race.sentence
    owner = owner_of(violation, strip, places) if violation.message else ""
    return Card(
        key=count.key,
        check=count.check,
        headline=headline,
        owner=owner,
        meaning=explain(count.check),
        expected=demand(violation.check) if violation.message else "",
        seen=violation.message if run is None else run.places.annotate(violation.message),
        rules=rules_of(violation.fact),
        strip=strip,
        race=race,
        program=text,
        trace=() if run is None else steps_of(run),
        places=() if owner in (_WENT_ON, _SAID_NOTHING) else shown_places(places),
        command=run_command(str(path), header) if text else "",
        state=state,
        met=met,
    )


def _bare(text: str) -> str:
    """A program without comments, expectations and header lines that say the default."""
    kept = ("guest", "host", "---", "guestemu-program")
    default = {
        line
        for line in format_text(Program(Header(), ())).splitlines()
        if not line.startswith(kept)
    }
    return "\n".join(
        line
        for line in text.splitlines()
        if line and not line.startswith(("#", "expect ")) and line not in default
    )


def _run(program: Program) -> tuple[Run, Race | None]:
    """The run, and its race if it migrates."""
    plain = msgspec.structs.replace(program, expectations=())
    if not has_migration(plain):
        return run_program(plain), None
    race, run = race_of(plain)
    return run, race


def _violation(run: Run | None, check: str) -> Violation | None:
    """The violation of `check` in `run`, or its first one."""
    if run is None:
        return None
    found = run.outcome.violations
    return next((one for one in found if one.check == check), found[0] if found else None)


def _places(path: Path) -> tuple[str, ...]:
    """The lines of host code that the campaign wrote into the program's comment."""
    try:
        if path.is_symlink():
            return ()
        lines = read_regular(path).decode("utf-8", "backslashreplace").splitlines()
    except (GuestemuError, OSError):
        return ()
    found = []
    is_there = False
    for line in lines:
        if line.startswith("# Host code that runs only"):
            is_there = True
        elif is_there and line.startswith("#   "):
            found.append(line.removeprefix("#   ").strip())
        elif is_there:
            break
    return tuple(found)
