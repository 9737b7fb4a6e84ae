# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu triage` found, as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from guestemu.abi.facts import cite
from guestemu.abi.names import plural
from guestemu.campaign.screen import duration
from guestemu.campaign.triage.cards import shown_places
from guestemu.campaign.triage.triage import Triaged
from guestemu.report.document import Content, Document, Item, Paragraph, Picture
from guestemu.report.strip import unsaid
from guestemu.report.trace.explain import demand


def triage_document(found: Sequence[Triaged]) -> Document:
    """Each finding with what is wrong, whose defect it is, its strip and the commands that show it
    again. The keys stand on the left."""
    if not found:
        return Document("", lead=(Paragraph("nothing found", "green"),))
    return Document("", lead=tuple(map(_finding, found)))


def _finding(entry: Triaged) -> Item:
    state = "" if entry.state == "shown" else f" ({entry.state})"
    style = "green" if entry.state == "gone" else "red"
    return Item(f"{entry.key}{state}", tuple(_contents(entry)), style)


def _contents(entry: Triaged) -> Iterator[Content]:
    yield Paragraph(
        f"met {plural(entry.count, 'time')}, first after {duration(entry.first_seen_s)}"
    )
    if entry.headline:
        yield Paragraph(entry.headline, "bold")
        yield Paragraph(f"{entry.owner[:1].upper()}{entry.owner[1:]}")
    expected = demand(entry.check)
    if entry.message and expected:
        yield Paragraph(f"Expected: {expected}")
    if entry.strip is not None and unsaid(entry.strip, entry.headline) != entry.strip.sentences:
        yield Paragraph(f"Seen: {entry.message}")  # else the headline is that
    if entry.fact:
        yield Paragraph(f"Rule: {cite(entry.fact)}")
    if entry.strip is not None:
        yield Picture("What guest and host say", entry.strip, entry.headline)
    for place in () if entry.owner.startswith("the guest") else shown_places(entry.places):
        yield Paragraph(place)
    for command in entry.commands:
        yield Paragraph(command)
