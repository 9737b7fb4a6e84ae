# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of the order model (`guestemu explore`) as evidence: how many interleavings lose a page."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from guestemu.claims.result import Evidence, Witness
from guestemu.explore.count import Space, Tally
from guestemu.explore.model import Scenario
from guestemu.explore.notation import format_script, parse_order, parse_script
from guestemu.explore.rules import Rules
from guestemu.explore.witness import format_witness, unrank

MODEL = "order model"
"""As the guest of a `ClaimResult`: no guest runs, steps are states of `guestemu explore`."""

LOOSE_ORDERS = (2, 3)
"""Rows of the table in which the status is copied before the dirty log of the page is cleared."""

TIGHT_ORDERS = (1, 4, 5, 6)
"""Rows in which the status is copied, or read, after that."""


class Cell(msgspec.Struct, frozen=True):
    """One counted cell: row of the table, script, rules of the model, tally."""

    row: int
    script: str
    rules: Rules
    space: Space

    @property
    def tally(self) -> Tally:
        """Of all interleavings."""
        return self.space.tally

    @property
    def lost(self) -> int:
        """Interleavings that lose the last value written (`lost_strict`)."""
        return self.tally.lost_strict

    @property
    def lost_defined(self) -> int:
        """Of those, the ones in which the value was still defined."""
        return self.tally.lost_defined


def count(row: int, script: str, rules: Rules | None = None) -> Cell:
    """Counts the cell of order `row` (1 to 6) and `script` (a name, or steps in the notation)."""
    scenario = Scenario(parse_order(str(row)), parse_script(script), rules=rules or Rules())
    return Cell(row, script, scenario.rules, Space(scenario))


def count_rows(rows: Iterable[int], script: str, rules: Rules | None = None) -> tuple[Cell, ...]:
    """`count` for several orders."""
    return tuple(count(row, script, rules) for row in rows)


def evidence(cell: Cell, note: str = "", by_defined: bool = False) -> Evidence:
    """The losing interleavings of a cell and how to count them again."""
    order = cell.space.scenario.order
    lost = cell.lost_defined if by_defined else cell.lost
    name = f"order {cell.row} ({order.name}), script {cell.script}"
    verdict = ", lost_defined" if by_defined else ""
    how = f"of {cell.tally.total}; guestemu explore {_options(cell)}{verdict}"
    return Evidence(f"{name}{', ' + note if note else ''}", lost, "losing interleavings", how)


def witness(cell: Cell, rank: int = 0) -> tuple[Witness, ...]:
    """Losing interleaving number `rank` of a cell, none if there are not so many."""
    if rank >= cell.lost:
        return ()
    text = format_witness(unrank(cell.space, rank))
    return (Witness(text, f"guestemu explore {_options(cell)} --witness {rank}"),)


def _options(cell: Cell) -> str:
    script = cell.space.scenario.script
    name = f"'{format_script(script.steps)}'" if " " in script.name else script.name
    default = Rules()
    rules = "".join(
        f" --rule {field.replace('_', '-')}"
        for field in Rules.__struct_fields__
        if getattr(cell.rules, field) != getattr(default, field)
    )
    return f"--order {cell.row} --script {name}{rules}"
