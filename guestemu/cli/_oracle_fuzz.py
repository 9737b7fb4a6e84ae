# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu oracle fuzz` does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import plural
from guestemu.cli import console
from guestemu.cli._late_progress import LateProgress
from guestemu.cli._oracle import accelerator, check_protected
from guestemu.conformance.recordings.kernel_choice import choose_kernel, without_defects
from guestemu.oracle.campaign import OracleCampaign
from guestemu.oracle.conversions import ConversionGenerator
from guestemu.oracle.generator import Generator
from guestemu.oracle.image import find_kernel
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.qemu import PACED, TCG, MachineEnded
from guestemu.oracle.reduce import OracleFinding
from guestemu.report.document import Document, Item, Paragraph

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


_MANY: Final = 50_000
"""Steps for which the longer start of `PACED` pays."""


class OracleSums(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign came to; `seconds` without the start of the machine (`start_up`); `covered`
    places of the kernel's code, 0 where it has no kcov."""

    kernel: str
    model: str
    steps: int
    programs: int
    exits: int
    vms: int
    features: int
    covered: int
    differing: int
    restarts: int
    start_up: float
    seconds: float
    findings: tuple[OracleFinding, ...]
    notes: tuple[str, ...]


class _Progress(LateProgress):
    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._all = total

    def show(self, done: int) -> None:
        self._show(min(done, self._all))

    def _columns(self) -> tuple[ProgressColumn, ...]:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

        return BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def fuzz_kernel(
    kernel: str,
    modules: Path | None,
    steps: int,
    *,
    seed: int,
    model: str | None,
    repaired: bool,
    memory: bool,
    out: Path | None,
    native: bool,
) -> tuple[OracleSums, bool]:
    """Runs the campaign; its sums, and whether Ctrl-C ended it."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: {error.strerror}; name a directory") from None
    emulated = PACED if steps >= _MANY else TCG
    with LiveKvm(find_kernel(kernel, modules), accelerator(native, emulated)) as kvm:
        choice = choose_kernel(model or kvm.machine.release, "--model" if model else kernel)
        if not choice.is_exact:
            console.note(f"no model of {model or kvm.machine.release}: compared with {choice.name}")
        if repaired:
            choice = without_defects(choice)
        console.note(f"{kvm.machine.release} is up after {kvm.start_up:.1f} s")
        generator = ConversionGenerator(seed) if memory else Generator(seed)
        if memory:
            check_protected(kvm.machine, kernel)
        campaign = OracleCampaign(
            kvm, choice.kernel, generator=generator, say=console.note, directory=out
        )
        begin, is_interrupted = time.monotonic(), False
        with _Progress(steps) as progress:
            try:
                campaign.run(steps, progress.show)
            except KeyboardInterrupt:
                is_interrupted = True
            except MachineEnded as error:
                campaign.sums.notes.append(f"ended early, the machine does not start: {error}")
        sums = campaign.sums
        return OracleSums(
            kernel=kvm.machine.release,
            model=choice.name,
            steps=sums.steps,
            programs=sums.programs,
            exits=sums.exits,
            vms=sums.vms,
            features=sums.features,
            covered=sums.covered,
            differing=sums.differing,
            restarts=sums.restarts,
            start_up=kvm.start_up,
            seconds=time.monotonic() - begin,
            findings=tuple(sums.findings),
            notes=tuple(sums.notes),
        ), is_interrupted


def sums_document(sums: OracleSums) -> Document:
    """For people."""
    findings = []
    for number, finding in enumerate(sums.findings, start=1):
        lines = [finding.explanation]
        if finding.file:
            lines.append(f"{plural(finding.steps, 'step')} in {finding.file}")
        below = tuple(map(Paragraph, lines))
        findings.append(Item(f": {finding.summary}", below, "red", f"finding {number}", 4))
    lines = list(sums.notes)
    if sums.covered:
        lines.append(f"{sums.covered} places of the kernel's code were reached")
    rate = sums.steps / max(sums.seconds, 1e-9)
    lines.append(
        f"{sums.kernel} against the model of {sums.model}: {sums.steps} steps ({sums.exits} exits, "
        f"{sums.vms} VMs, {sums.features} features of the model) in {sums.seconds:.1f} s "
        f"({rate:.0f}/s): {sums.differing} differ, {len(sums.findings)} findings, "
        f"{sums.restarts} restarts"
    )
    return Document("", lead=(*findings, *map(Paragraph, lines)))
