# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu conform`: the host model and the guest's CPU against recordings of a real KVM."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from guestemu.conformance.recordings.kernel_choice import KernelChoice
    from guestemu.conformance.recordings.recording import Recording
    from guestemu.conformance.recordings.run import StepTally
    from guestemu.report.document import Document

GROUP: Final = "Regression"
ORDER: Final = 20

SHOWN: Final = 30


def command(
    recording: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS.jsonl",
            help="A recording of a real KVM, its `meta` line first.",
            show_default=False,
        ),
    ],
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel",
            metavar="VERSION",
            help="Compare with the model of this kernel, not of the recorded one.",
        ),
    ] = None,
    repaired: Annotated[
        bool,
        typer.Option(
            "--repaired",
            help="Compare with the model without that kernel's known defects: what disagrees shows "
            "them.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Compare the KVM model with a recording of a real KVM.

    Every recorded guest step (vmmcall, vmcall, rdmsr, wrmsr) is executed by guest instructions in
    its mode and privilege level; the ioctls of the recording go to the model. A step agrees if what
    the set-up ioctls returned, every field of every exit and the whole outcome are equal.

    Exit status 1: a step disagrees.

    For example:

      guestemu conform linux-6.1.jsonl

      guestemu conform linux-6.12.jsonl --kernel 6.1 --json

      guestemu conform linux-6.12.jsonl --repaired
    """
    from guestemu.conformance.recordings.kernel_choice import choose_kernel, without_defects
    from guestemu.conformance.recordings.reader import read_recording
    from guestemu.conformance.recordings.run import StepTally

    source = read_recording(recording)
    if kernel is None:
        choice = choose_kernel(source.meta.kernel, str(recording))
    else:
        choice = choose_kernel(kernel, "--kernel")
    if not choice.is_exact:
        console.note(
            f"no model of kernel {kernel or source.meta.kernel}: compared with the nearest, "
            f"{choice.kernel.name}"
        )
    if repaired:
        choice = without_defects(choice)
    tally = StepTally()
    interrupted = _compare(source, choice, tally)
    if as_json:
        _emit_object(source, choice, tally)
    else:
        console.emit_document(_document(source, choice, tally))
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FINDINGS if tally.disagree else EXIT_OK


def _compare(source: Recording, choice: KernelChoice, tally: StepTally) -> bool:
    """Runs the recording into `tally`. True: Ctrl-C ended it between two steps."""
    from guestemu.cli._interrupts import Interrupts
    from guestemu.cli._step_progress import StepProgress
    from guestemu.conformance.recordings.run import Conformance

    conformance = Conformance(choice.kernel)
    start = time.monotonic()
    interrupted = False
    with StepProgress(len(source.steps)) as progress, Interrupts() as interrupts:

        def after_step() -> None:
            progress.advance()
            interrupts.release()
            interrupts.hold()

        interrupts.hold()
        try:
            conformance.run(source, tally, after_step)
        except KeyboardInterrupt:
            interrupted = True
    seconds = max(time.monotonic() - start, 1e-6)
    conformance.close()
    console.note(f"{tally.steps} steps in {seconds:.2f} s ({tally.steps / seconds:.0f} steps/s)")
    return interrupted


def _emit_object(source: Recording, choice: KernelChoice, tally: StepTally) -> None:
    console.emit_json(
        {
            "kernel": source.meta.kernel,
            "model": choice.name,
            "steps": tally.steps,
            "agree": tally.agree,
            "disagree": tally.disagree,
            "unsupported": len(tally.unsupported),
            "unsupported_steps": tally.unsupported,
        }
    )


def _document(source: Recording, choice: KernelChoice, tally: StepTally) -> Document:
    """For people."""
    from guestemu.report.document import Content, Document, Grid, Item, Paragraph

    lead: list[Content] = []
    if tally.disagree:
        rows = tuple(
            (item.id, item.step, item.field, _shown(item.expected), _shown(item.found))
            for item in tally.disagree[:SHOWN]
        )
        lead.append(Grid(("case", "step", "field", "recorded", "model"), rows))
    if len(tally.disagree) > SHOWN:
        text = f"and {len(tally.disagree) - SHOWN} more fields; --json lists them all"
        lead.append(Paragraph(text))
    lead += (
        Paragraph(f"case {item.id} step {item.step} not compared: {item.reason}")
        for item in tally.unsupported[:SHOWN]
    )
    disagree = tally.steps - tally.agree - len(tally.unsupported)
    word, style = ("disagree", "red") if disagree else ("agree", "green")
    text = (
        f": {tally.steps} steps, {tally.agree} agree, {disagree} disagree, "
        f"{len(tally.unsupported)} not compared"
    )
    title = f"recorded from {source.meta.kernel}, compared with the model of {choice.name}"
    return Document(title, lead=(*lead, Item(text, (), style, word)))


def _shown(value: int | str | None) -> str:
    return "-" if value is None else str(value)
