# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of the order model (`guestemu explore`) as evidence: how many interleavings lose a page.

The model counts; `machine_check` re-runs interleavings as migrations of a guest (`explore
--confirm`), and an experiment whose two accounts differ is not decided.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from guestemu.migration.model.count import Space, Tally
from guestemu.migration.model.notation import format_script, parse_order, parse_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.programs import LinkKind
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.witness import format_witness, unrank
from guestemu.report.witness import race_of_witness
from guestemu.study.claims.result import ClaimWitness, Evidence
from guestemu.study.explore_confirm import confirm

MODEL = "order model"
"""As the guest of a `ClaimResult`: no guest runs, steps are states of `guestemu explore`."""

MACHINE = "snippet:6.1"
"""The guest that `machine_check` migrates."""

MIGRATIONS = 30
"""Losing interleavings that `machine_check` runs."""

LOOSE_ORDERS = (2, 3)
"""Rows of the table in which the status is copied before the dirty log of the page is cleared."""

TIGHT_ORDERS = (1, 4, 5, 6)
"""Rows in which the status is copied, or read, after that."""


class InterleavingCell(msgspec.Struct, frozen=True):
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


def count(row: int, script: str, rules: Rules | None = None) -> InterleavingCell:
    """Counts the cell of order `row` (1 to 6) and `script` (a name, or steps in the notation)."""
    scenario = Scenario(parse_order(str(row)), parse_script(script), rules=rules or Rules())
    return InterleavingCell(row, script, scenario.rules, Space(scenario))


def count_rows(
    rows: Iterable[int], script: str, rules: Rules | None = None
) -> tuple[InterleavingCell, ...]:
    """`count` for several orders."""
    return tuple(count(row, script, rules) for row in rows)


class MachineCheck(msgspec.Struct, frozen=True):
    """Whether migrations on the machine gave the model's verdicts, and the evidence for it; without
    migrations (other rules than the machine's) nothing is said and `agrees` holds."""

    agrees: bool
    evidence: tuple[Evidence, ...] = ()
    guests: tuple[str, ...] = (MODEL,)


def machine_check(cells: Iterable[InterleavingCell]) -> MachineCheck:
    """Migrates by losing interleavings of `cells`, `MIGRATIONS` at most and of all cells, and by as
    many harmless ones; private pages go through the SEV firmware."""
    chosen = tuple(cells)
    if any(cell.rules != Rules() for cell in chosen):
        return MachineCheck(True)
    found = confirm([cell.space for cell in chosen], MIGRATIONS, link=LinkKind.FIRMWARE)
    if found.is_interrupted:
        raise KeyboardInterrupt  # `confirm` keeps what it has; half a check decides nothing
    how = f"of {found.runs} migrations to a second machine by SEND and RECEIVE: {found.losing} that"
    how += f" lose, {found.others} that do not"
    name = "machine gives the model's verdict"
    text = Evidence(name, found.confirmed, "migrations", how)
    return MachineCheck(not found.disagreements, (text,), (MODEL, MACHINE))


def evidence(cell: InterleavingCell, note: str = "", by_defined: bool = False) -> Evidence:
    """The losing interleavings of a cell and how to count them again."""
    order = cell.space.scenario.order
    lost = cell.lost_defined if by_defined else cell.lost
    name = f"order {cell.row} ({order.name}), script {cell.script}"
    verdict = ", lost_defined" if by_defined else ""
    how = f"of {cell.tally.total}; guestemu explore {_options(cell)}{verdict}"
    return Evidence(f"{name}{', ' + note if note else ''}", lost, "losing interleavings", how)


def witness(cell: InterleavingCell, rank: int = 0) -> tuple[ClaimWitness, ...]:
    """Losing interleaving number `rank` of a cell, none if there are not so many."""
    if rank >= cell.lost:
        return ()
    found = unrank(cell.space, rank)
    command = f"guestemu explore {_options(cell)} --witness {rank}"
    return (ClaimWitness(format_witness(found), command, race_of_witness(cell.space, found)),)


def _options(cell: InterleavingCell) -> str:
    script = cell.space.scenario.script
    name = f"'{format_script(script.steps)}'" if " " in script.name else script.name
    default = Rules()
    rules = "".join(
        f" --rule {field.replace('_', '-')}"
        for field in Rules.__struct_fields__
        if getattr(cell.rules, field) != getattr(default, field)
    )
    return f"--order {cell.row} --script {name}{rules}"
