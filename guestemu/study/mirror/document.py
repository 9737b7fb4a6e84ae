# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of pages, and who noticed attacks, as documents: `guestemu explore mirror`."""

from __future__ import annotations

from collections.abc import Sequence

from guestemu.report.document import Document, Grid, Paragraph
from guestemu.study.mirror.noticed import ThreatCell
from guestemu.study.mirror.table import NamingCell


def namings_document(found: Sequence[NamingCell], why: bool) -> Document:
    """A row for each proposal, a column for each kind of page; with `why` the reason of each
    cell."""
    pages = list(dict.fromkeys(cell.page for cell in found))
    fates = {(cell.naming, cell.page): cell.fate for cell in found}
    rows = tuple(
        (naming, *(fates.get((naming, page), "") for page in pages))
        for naming in dict.fromkeys(cell.naming for cell in found)
    )
    reasons = [f"{cell.naming}, {cell.page}: {cell.fate}: {cell.reason}" for cell in found]
    return _document(Grid(("named by", *pages), rows), reasons if why else ())


def threats_document(found: Sequence[ThreatCell], why: bool) -> Document:
    """A row for each attack, a column for each handler; with `why` what each cell lost."""
    columns = list(dict.fromkeys(cell.handlers for cell in found))
    words = {
        (cell.threat, cell.handlers): cell.noticed_by + ("*" if cell.lost else "") for cell in found
    }
    actors = {cell.threat: cell.actor for cell in found}
    rows = tuple(
        (threat, actor, *(words.get((threat, column), "") for column in columns))
        for threat, actor in actors.items()
    )
    reasons = [
        f"{cell.handlers}, {cell.threat}: noticed by {cell.noticed_by}: "
        f"{cell.lost or 'nothing is lost'}"
        for cell in found
    ]
    return _document(Grid(("attack", "by", *columns), rows), reasons if why else ())


def _document(grid: Grid, reasons: Sequence[str]) -> Document:
    return Document("", lead=(grid, *map(Paragraph, reasons)))
