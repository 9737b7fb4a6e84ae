# SPDX-License-Identifier: GPL-2.0-or-later
"""The race of an interleaving of the order model: its steps in two lanes, what each changes, and
the step after which every continuation loses the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from guestemu.migration.model.count import Space
from guestemu.migration.model.explain import explain, show_page
from guestemu.migration.model.order_model import State, final_pass, is_stopped
from guestemu.migration.model.report import WitnessReport, report
from guestemu.migration.model.steps import (
    Chunk,
    GuestStep,
    HostStep,
    Pte,
    StatusHypercall,
    Write,
)
from guestemu.migration.model.witness import Moment, PassStep, Stop, Witness, losing
from guestemu.report.document import Chapter, Code, Document, Grid, Paragraph, Picture
from guestemu.report.race import GUEST, HOST, Race, RaceStep

_WORDS: Final = {
    HostStep.AUTO_CLEAR: "fetches and clears the dirty log",
    HostStep.GET: "fetches the dirty log",
    HostStep.CLEAR: "clears the dirty log",
    HostStep.ENC: "copies the host's record",
    HostStep.SEND: "sends by the copy",
    HostStep.SEND_LIVE: "sends by the record as it is now",
}
_VIEWS: Final = {True: "shared", False: "private"}


def race_of_witness(space: Space, witness: Witness, by_defined: bool = False) -> Race:
    """The race of `witness`, an interleaving of `space`; steps are numbered from 0."""
    bands = _bands(witness)
    steps = tuple(
        RaceStep(index, _lane(moment), _text(moment.step), band, tuple(_effects(witness, moment)))
        for index, (moment, band) in enumerate(zip(witness.moments, bands, strict=True))
    )
    lost_at = _lost_at(space, witness, by_defined)
    sentence = explain(witness)
    if lost_at is not None:
        step = steps[lost_at]
        sentence += f" After step {step.op} ({step.text}) no order of the remaining steps saves it."
    return Race(
        steps=steps,
        lost_at=lost_at,
        place="the page",
        offset=0,
        before="",
        after="",
        sentence=sentence,
    )


def witness_document(
    space: Space, witness: Witness, command: str, by_defined: bool = False
) -> Document:
    """The race, the model's state after each step, and the command that shows both again."""
    race = race_of_witness(space, witness, by_defined)
    shown = report(witness, with_steps=True)
    return Document(
        f"The page is lost: {shown.interleaving}",
        (
            Chapter(
                "",
                (
                    Paragraph(race.sentence),
                    Paragraph(
                        f"Host order: {witness.scenario.order.name}. The guest's script: "
                        f"{witness.scenario.script.name}. t1 is a value that the guest writes; "
                        "E_s(t1) are its bytes under the source's key, E_d(t1) under the "
                        "destination's."
                    ),
                ),
                is_page_only=True,
            ),
            Chapter("", (Picture("The race", race),)),
            Chapter("", (_states(shown),)),
            Chapter("See it again", (Code(command, True),), is_page_only=True),
        ),
    )


def _states(shown: WitnessReport) -> Grid:
    rows = []
    for step in shown.steps:
        by = "guest" if step.side == "guest" else "host"
        number = f"{by} {step.live_pass}" if step.live_pass else by
        cells = (step.pte, step.status, step.dirty, step.snapshot, step.enc)
        rows.append((step.step, number, *cells, step.source, step.destination))
    columns = ("PTE", "status", "dirty", "snapshot", "copy", "source", "destination")
    return Grid(("step", "by", *columns), tuple(rows), "State after each step", is_words=True)


def _lost_at(space: Space, witness: Witness, by_defined: bool) -> int | None:
    """The first step after which all interleavings of what is left lose the page."""
    for index, moment in enumerate(witness.moments):
        tally = space.tally_of(moment.after)
        if losing(tally, by_defined) == tally.total:
            return index
    return None


def _bands(witness: Witness) -> Iterator[int]:
    """The live pass of each step: a guest's belongs to the pass that it falls into, STOP and what
    comes behind it to none."""
    length = len(witness.scenario.order.steps)
    for moment in witness.moments:
        if isinstance(moment.step, PassStep):
            yield moment.step.number
        elif isinstance(moment.step, Stop) or is_stopped(witness.scenario, moment.before):
            yield 0
        else:
            done, inside = divmod(moment.before.host, length)
            yield done + 1 if inside else 0


def _lane(moment: Moment) -> str:
    return HOST if isinstance(moment.step, PassStep | Stop) else GUEST


def _text(step: GuestStep | PassStep | Stop) -> str:
    match step:
        case PassStep(kind):
            return f"{kind.value}: {_WORDS[kind]}"
        case Stop():
            return "STOP: the guest stops, a final pass"
        case Pte(to_shared):
            return f"PTE{_sign(to_shared)}: makes its leaf {_VIEWS[to_shared]}"
        case StatusHypercall(to_shared):
            return f"HC{_sign(to_shared)}: tells the host {_VIEWS[to_shared]}"
        case Chunk(to_shared):
            return f"CH{_sign(to_shared)}: KVM hands on another chunk of the call"
        case Write(token):
            return f"t{token}!: writes t{token}"


def _sign(to_shared: bool) -> str:
    return "-" if to_shared else "+"


def _effects(witness: Witness, moment: Moment) -> Iterator[str]:
    """What the step changed that a reader has to know to follow the loss."""
    before, after, step = moment.before, moment.after, moment.step
    if isinstance(step, Stop):
        _, sent = final_pass(witness.scenario, before)
        if sent is not None:
            yield _sending(sent, after)
        else:
            yield f"clean, not sent: {show_page(after.destination)} stays"
        if after.lost_at_resume and witness.scenario.rules.cut_reads_success:
            yield "the guest reads success for the chunks that are left"
        return
    if isinstance(step, PassStep):
        yield from _pass_effects(step.step, before, after)
    elif isinstance(step, StatusHypercall) and after.status_shared != before.status_shared:
        yield f"host's record {_VIEWS[after.status_shared]}"
    elif isinstance(step, Write) and after.is_dirty and not before.is_dirty:
        yield "the page is in the dirty log"


def _pass_effects(step: HostStep, before: State, after: State) -> Iterator[str]:
    if step is HostStep.ENC:
        yield f"the copy says {_VIEWS[after.enc_shared]}"
    elif step in (HostStep.SEND, HostStep.SEND_LIVE):
        if not before.in_snapshot:
            yield "the page was clean: not sent"
            return
        is_live = step is HostStep.SEND_LIVE
        yield _sending(before.status_shared if is_live else before.enc_shared, after)
    elif before.is_dirty and not after.is_dirty:
        yield "the log forgets the page"
    elif not before.is_dirty and step is not HostStep.CLEAR:
        yield "the page is clean"


def _sending(as_shared: bool, after: State) -> str:
    return f"sent as {_VIEWS[as_shared]}: arrives as {show_page(after.destination)}"
