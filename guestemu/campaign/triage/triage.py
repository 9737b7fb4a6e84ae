# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings of many campaigns folded into one list, each looked at anew.

A finding's program is run again, as it is and on the host as it is now: what is mended since is
said to be gone, and what two campaigns found is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from guestemu.abi.errors import GuestemuError, ProgramTimeError
from guestemu.abi.files import write_atomically
from guestemu.campaign.figures import merge_counts
from guestemu.campaign.findings import NOT_REPRODUCIBLE, FindingCount
from guestemu.campaign.readings import finding_programs, read_campaign
from guestemu.campaign.store import WORKDIR
from guestemu.campaign.triage.bundle import make_bundle
from guestemu.campaign.triage.cards import headline_of, owner_of
from guestemu.campaign.triage.explain import run_command
from guestemu.campaign.triage.identify import Finding, digest_of
from guestemu.campaign.triage.single import findings_of
from guestemu.host.permission import Permissions
from guestemu.program.program import Header, Program
from guestemu.program.text import load_program
from guestemu.report.strip import Strip
from guestemu.report.trace.places import Places
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import with_plugin


class Triaged(msgspec.Struct, frozen=True):
    """One defect over all campaigns. `programs` are the files that show it, the first is to be
    read, and `commands` run them; `places` the suspected host code; `state`: "shown", "gone" (no
    check fails any more), "not shown again" (it never showed twice), "time-up: WHY" (it takes more
    than its time) or "error: WHY" (the program cannot be run); `strip` pictures the run, `headline`
    is what is wrong in one sentence, `owner` whose defect it is."""

    key: str
    check: str
    program: str
    programs: tuple[str, ...]
    commands: tuple[str, ...]
    count: int
    first_seen_s: float
    message: str
    fact: str
    symptom: str
    places: tuple[str, ...]
    state: str
    strip: Strip | None = None
    headline: str = ""
    owner: str = ""


class _Group(msgspec.Struct):
    key: str
    state: str
    paths: list[Path]
    counts: list[FindingCount]
    finding: Finding | None = None
    program: Program | None = None
    strip: Strip | None = None
    places: Places | None = None


def triage(
    workdirs: Sequence[Path],
    writing: bool,
    permissions: Permissions,
    advance: Callable[[], None],
) -> list[Triaged]:
    """The defects that campaigns found, those met most first; `writing` writes explanation and test
    beside the first program of each. `permissions` say which hosts of the user's may run. `advance`
    is called after each program.

    Raises `InputError` for a directory without a campaign.
    """
    groups: dict[str, _Group] = {}
    for workdir in workdirs:
        counts = {found.key: found for found in read_campaign(workdir).findings}
        for path in finding_programs(workdir):
            group = _look(path, counts.get(path.stem), permissions)
            known = groups.setdefault(digest_of(group.key), group)
            if known is not group:
                known.paths += group.paths
                known.counts += group.counts
            advance()
    for group in groups.values():
        if writing and group.finding is not None and group.program is not None:
            _write(group.finding, group.program, group.paths[0])
    found = [_triaged(group) for group in groups.values()]
    return sorted(found, key=lambda entry: (-entry.count, entry.key))


def programs_in(workdirs: Sequence[Path]) -> int:
    """How many programs `triage` will run."""
    return sum(len(finding_programs(workdir)) for workdir in workdirs)


def _look(path: Path, count: FindingCount | None, permissions: Permissions) -> _Group:
    counts = [] if count is None else [count]
    program: Program | None = None
    try:
        program = with_plugin(load_program(path), permissions, path)
        plain = msgspec.structs.replace(program, expectations=())
        is_unstable = path.stem.startswith(f"{NOT_REPRODUCIBLE}-")
        if is_unstable and run_program(plain).outcome.is_ok:
            return _Group(path.stem, "not shown again", [path], counts, program=program)
        findings = findings_of(plain)
    except ProgramTimeError as error:
        return _Group(path.stem, f"time-up: {error}", [path], counts, program=program)
    except GuestemuError as error:
        return _Group(path.stem, f"error: {error}", [path], counts, program=program)
    if not findings:
        return _Group(path.stem, "gone", [path], counts, program=program)
    digest = digest_of(path.stem)
    same = [finding for finding in findings if digest_of(finding.key) == digest]
    finding = (same or findings)[0]
    run = run_program(plain)
    group = _Group(finding.key, "shown", [path], counts, finding, program)
    group.strip, group.places = run.strip, run.places
    return group


def _write(finding: Finding, program: Program, path: Path) -> None:
    bundle = make_bundle(finding, program, path, f"the campaign in {path.parent.parent}")
    write_atomically(path.with_suffix(".md"), bundle.explanation.encode(), WORKDIR)
    name = f"test_{path.stem.replace('-', '_')}.py"
    write_atomically(path.with_name(name), bundle.test.encode(), WORKDIR)


def _triaged(group: _Group) -> Triaged:
    merged = merge_counts(
        [[msgspec.structs.replace(count, key=group.key)] for count in group.counts]
    )
    finding, places = group.finding, group.places
    message = "" if finding is None else finding.violation.message
    return Triaged(
        key=group.key,
        check=group.key.rsplit("-", 2)[0] if finding is None else finding.violation.check,
        program=str(group.paths[0]),
        programs=tuple(map(str, group.paths)),
        commands=tuple(
            run_command(str(path), group.program.header if group.program else Header())
            for path in group.paths
        ),
        count=merged[0].count if merged else 0,
        first_seen_s=merged[0].first_seen_s if merged else 0.0,
        message=message if places is None else places.annotate(message),
        fact="" if finding is None else finding.violation.fact,
        symptom="" if finding is None else finding.symptom,
        places=() if finding is None else finding.places,
        state=group.state,
        strip=group.strip,
        headline="" if finding is None else headline_of(finding.violation, group.strip, places),
        owner="" if finding is None else owner_of(finding.violation, group.strip, finding.places),
    )
