# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel hostile` does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from guestemu.cli import console

if TYPE_CHECKING:
    from guestemu.kernel.hostile import HostileExperiment
    from guestemu.report.document import Document


class HostileRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which kernel and device, how many experiments from which number on."""

    image: str
    sev: str
    device: str
    count: int
    first: int
    seed: int


class HostileFinding(msgspec.Struct, frozen=True):
    """Findings that look alike: the first of them and how many there were."""

    key: str
    count: int
    first: HostileExperiment


class HostileReport(msgspec.Struct, frozen=True, kw_only=True):
    """`outcomes` counts experiments by outcome; `stale_bytes` are those that were not zero in
    buffers handed to the device to be written, over all experiments; `seconds` of CPU time."""

    version: str
    device: str
    experiments: int
    seconds: float
    outcomes: dict[str, int]
    findings: tuple[HostileFinding, ...]
    stale_bytes: int
    interrupted: bool


def run_hostile(request: HostileRequest) -> HostileReport:
    """Runs the experiments; Ctrl-C ends them early. Raises `InputError`."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER
    from guestemu.guest.linux.userland.session import Setting, Userland
    from guestemu.kernel.hostile import HostileRuns

    setting = Setting(
        sev=request.sev,
        memory=256 if request.sev == "tdx" else 128,
        devices=(request.device,),
    )
    with console.busy("booting"):
        running = Userland(LOADER).start(find_image(request.image), setting)
    start = time.process_time()
    runs = HostileRuns(running, request.device, request.seed)
    outcomes: dict[str, int] = {}
    findings: dict[str, list[HostileExperiment]] = {}
    interrupted = False
    try:
        for experiment in runs.run(range(request.first, request.first + request.count)):
            outcomes[experiment.outcome] = outcomes.get(experiment.outcome, 0) + 1
            if experiment.is_finding:
                findings.setdefault(experiment.key, []).append(experiment)
    except KeyboardInterrupt:
        interrupted = True
    return HostileReport(
        version=running.kernel.version,
        device=request.device,
        experiments=sum(outcomes.values()),
        seconds=round(time.process_time() - start, 3),
        outcomes=dict(sorted(outcomes.items())),
        findings=tuple(HostileFinding(key, len(all_), all_[0]) for key, all_ in findings.items()),
        stale_bytes=runs.stale_bytes,
        interrupted=interrupted,
    )


def document(report: HostileReport) -> Document:
    """For people."""
    from guestemu.report.document import Bullets, Document, Item, Paragraph

    counts = ", ".join(f"{outcome} {count}" for outcome, count in report.outcomes.items())
    findings = (
        Item(
            f"{finding.key} ({finding.count}, first --first {finding.first.number})",
            (Bullets(tuple(finding.first.changes)),),
            indent=0,
        )
        for finding in report.findings
    )
    stale = f"bytes of the kernel's that buffers showed to the device: {report.stale_bytes}"
    return Document(
        f"{report.version}, hostile {report.device}: {report.experiments} experiments in "
        f"{report.seconds} s of CPU time: {counts}",
        lead=(Paragraph(stale), *findings),
    )
