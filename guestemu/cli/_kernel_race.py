# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel race` does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from guestemu.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guestemu.kernel.race import RaceExperiment, Races
    from guestemu.report.document import Document


class RaceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which kernel and scenarios (none: all that it has), the orders (none: all of up to `turns`
    turns; with 0 `count` drawn ones from number `first` on), the planted defect, the guest kind."""

    image: str
    sev: str
    scenarios: tuple[str, ...]
    orders: tuple[str, ...]
    turns: int
    count: int
    first: int
    seed: int
    plant: str


class RaceFinding(msgspec.Struct, frozen=True):
    """Findings of one check: how many there were, the first of them, and one with a smaller order
    that was looked for after it."""

    key: str
    count: int
    first: RaceExperiment
    smallest: RaceExperiment


class RacedScenario(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario: its experiments, how many had each pair of results ("0 -16"; "?" for a call
    that did not return), CPU seconds, findings."""

    scenario: str
    experiments: int
    returned: dict[str, int]
    seconds: float
    findings: tuple[RaceFinding, ...]


class RaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """All scenarios on one kernel; `absent` are those that it cannot run, each with why."""

    version: str
    sev: str
    plant: str
    scenarios: tuple[RacedScenario, ...]
    absent: dict[str, str]
    interrupted: bool

    @property
    def is_wrong(self) -> bool:
        """Whether there is a finding."""
        return any(raced.findings for raced in self.scenarios)


def run_races(request: RaceRequest) -> RaceReport:
    """Runs the experiments; Ctrl-C ends them early. Raises `InputError`."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER
    from guestemu.guest.linux.userland.session import Setting, Userland
    from guestemu.kernel.race import SCENARIOS, Races, missing

    image = find_image(request.image)
    userland, setting = Userland(LOADER), Setting(cpus=2, sev=request.sev)
    done: list[RacedScenario] = []
    absent: dict[str, str] = {}
    version = ""
    interrupted = False
    for name in request.scenarios or SCENARIOS:
        with console.busy(f"starting for {name}"):
            running = userland.start(image, setting)
        version = running.kernel.version
        try:
            why = "" if request.scenarios else missing(running.kernel, name, request.sev)
            if why:
                absent[name] = why
                continue
            races = Races(running, name, request.plant)
            raced, interrupted = _race(request, name, races)
            done.append(raced)
        finally:
            running.machine.close()
        if interrupted:
            break
    return RaceReport(
        version=version,
        sev=request.sev,
        plant=request.plant,
        scenarios=tuple(done),
        absent=absent,
        interrupted=interrupted,
    )


def _race(request: RaceRequest, name: str, races: Races) -> tuple[RacedScenario, bool]:
    """One scenario, and whether Ctrl-C ended it."""
    start = time.process_time()
    returned: dict[str, int] = {}
    findings: dict[str, list[RaceExperiment]] = {}
    interrupted = False
    try:
        with console.busy(f"racing {name}"):
            for experiment in _experiments(request, races):
                pair = " ".join("?" if one is None else str(one) for one in experiment.returned)
                returned[pair] = returned.get(pair, 0) + 1
                if experiment.is_finding:
                    findings.setdefault(experiment.key, []).append(experiment)
    except KeyboardInterrupt:
        interrupted = True
    found = []
    with console.busy("making orders smaller"):
        for key, all_ in findings.items():
            smallest = all_[0]
            try:
                smallest = smallest if interrupted else races.reduce(smallest)
            except KeyboardInterrupt:
                interrupted = True
            found.append(RaceFinding(key, len(all_), all_[0], smallest))
    raced = RacedScenario(
        scenario=name,
        experiments=sum(returned.values()),
        returned=dict(sorted(returned.items())),
        seconds=round(time.process_time() - start, 3),
        findings=tuple(found),
    )
    return raced, interrupted


def _experiments(request: RaceRequest, races: Races) -> Iterator[RaceExperiment]:
    if request.orders:
        return (races.one(order) for order in request.orders)
    if request.turns:
        return races.every(request.turns)
    return races.run(request.seed, range(request.first, request.first + request.count))


def document(report: RaceReport) -> Document:
    """For people."""
    from guestemu.report.document import Content, Document, Item, Paragraph, Picture

    lead: list[Content] = []
    for raced in report.scenarios:
        pairs = ", ".join(f"{pair} ({count})" for pair, count in raced.returned.items())
        text = (
            f"{raced.scenario}: {raced.experiments} orders in {raced.seconds} s of CPU time; "
            f"returned {pairs or 'nothing'}"
        )
        lead.append(Paragraph(text))
        for finding in raced.findings:
            smallest = finding.smallest
            again = f"  --scenario {raced.scenario} --order {smallest.order}"
            text = f"  {finding.key} ({finding.count}): {smallest.text}"
            lead.append(Item(text, (Paragraph(again),)))
            if smallest.race is not None:
                lead.append(Picture(f"The race of {finding.key}", smallest.race))
    lead += (Paragraph(f"{name}: absent: {why}") for name, why in report.absent.items())
    planted = f", planted: {report.plant}" if report.plant else ""
    return Document(f"{report.version}, {report.sev}, two CPUs{planted}", lead=tuple(lead))
