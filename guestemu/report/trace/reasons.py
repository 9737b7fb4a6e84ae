# SPDX-License-Identifier: GPL-2.0-or-later
"""How the records of one frame disagree: the rows of a strip, and the words for what does not fit.

Beside page tables that map the frame stand what was asked for, page state and alias mapping.
The host's record stands beside what the host was told and beside the page tables; of what may be
wrong with it the first rule that fits is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from guestemu.report.strip import NO, NOTHING, REFUSED, UNMAPPED

ASKED: Final = "asked for"
TABLES: Final = "page tables"
ALIAS: Final = "alias mapping"
STATE: Final = "page state"
TOLD: Final = "told to the host"
RECORD: Final = "host's record"
SENT: Final = "sent as"
AFTERWARDS: Final = "read afterwards"
IF_MIGRATED: Final = "if migrated now"
READABLE: Final = "readable now"
"""The rows of a strip, in their order."""

_BESIDE_TABLES: Final = (
    (ASKED, "asked for {} (the call returned 0)"),
    (STATE, "page state {}"),
    (ALIAS, "alias mapping {}"),
)


class FrameRecords(msgspec.Struct, frozen=True, kw_only=True):
    """What a strip says of one frame: `cells` by row; `is_done`: the last conversion of the frame
    returned 0; `is_changed`: page tables or record are not as before the run; `has_record`: the
    host keeps a record of conversions."""

    cells: Mapping[str, str]
    is_done: bool
    is_changed: bool
    has_record: bool

    def reasons(self) -> tuple[str, ...]:
        """How the records disagree; empty where they do not."""
        found = [*self._beside_tables(), *self._beside_record()]
        lost = _losses(self.cells)
        if self._is_mapped and (found or len(lost) > 1):
            found.insert(0, f"page tables {self.cells[TABLES]}")
        return (*found, *lost)

    @property
    def _is_mapped(self) -> bool:
        return self.cells.get(TABLES, NOTHING) not in (NOTHING, UNMAPPED)

    def _beside_tables(self) -> Iterator[str]:
        if not self._is_mapped:
            return
        for row, words in _BESIDE_TABLES:
            word = self.cells.get(row, NOTHING)
            if word not in (NOTHING, self.cells[TABLES]) and (row != ASKED or self.is_done):
                yield words.format(word)

    def _beside_record(self) -> tuple[str, ...]:
        if not self.has_record:
            return ()
        record, told = self.cells[RECORD], self.cells[TOLD]
        is_refused = told.endswith(REFUSED)
        is_told = told != NOTHING and not is_refused
        is_asked = self.cells.get(ASKED, NOTHING) != NOTHING
        is_apart = self._is_mapped and record != self.cells[TABLES]
        is_due = is_asked or (self.is_changed and not is_told)
        rules = (
            (is_told and told != record, f"the host was told {told}, its record says {record}"),
            (is_apart and is_due, f"host's record {record}{' (it refused)' if is_refused else ''}"),
            (self.cells.get(IF_MIGRATED) == NO, f"the host was told {record}"),
            (
                not is_told and not self._is_mapped and self.is_changed,
                f"the host was told nothing, its record says {record}",
            ),
        )
        return tuple(words for fits, words in rules if fits)[:1]


def _losses(cells: Mapping[str, str]) -> tuple[str, ...]:
    """What became of a frame in a migration, if its content did not arrive."""
    if cells.get(AFTERWARDS) != NO:
        return ()
    sent = cells.get(SENT, NOTHING)
    how = (f"sent as {sent}",) if sent and sent != cells.get(TABLES) else ()
    return (*how, "at the destination the guest reads other bytes")
