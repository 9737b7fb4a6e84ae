# SPDX-License-Identifier: GPL-2.0-or-later
"""The losing and all interleavings of the order model, from a derivation independent of this code:
two programs by others agreed on them."""

from __future__ import annotations

from collections.abc import Iterator

from guestemu.migration.model.count import Space, Tally
from guestemu.migration.model.order_model import LIVE_PASSES, Scenario
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import ORDERS, SCRIPTS

PUBLISHED = Rules()

_TABLE = """
0/120 0/120 51/120 0/1716 328/792 127/330
7/120 2/120 82/120 68/1716 104/792 201/330
3/220 1/220 114/220 97/5005 385/2002 364/715
0/220 0/220 87/220 0/5005 786/2002 275/715
0/56 0/56 23/56 0/462 110/252 47/126
0/120 0/120 47/120 0/1716 338/792 123/330
"""

TABLE: dict[tuple[int, str], tuple[int, int]] = {
    (row, script.name): (int(losing), int(total))
    for row, line in enumerate(_TABLE.split("\n")[1:-1], 1)
    for script, (losing, total) in zip(
        SCRIPTS, (cell.split("/") for cell in line.split()), strict=True
    )
}


def cells(rules: Rules = PUBLISHED, passes: int = LIVE_PASSES) -> Iterator[Scenario]:
    for order in ORDERS:
        for script in SCRIPTS:
            yield Scenario(order, script, passes, rules)


def tallies(rules: Rules = PUBLISHED, passes: int = LIVE_PASSES) -> dict[tuple[int, str], Tally]:
    return {
        (scenario.order.row or 0, scenario.script.name): Space(scenario).tally
        for scenario in cells(rules, passes)
    }


def surviving(found: dict[tuple[int, str], Tally], by_defined: bool = False) -> int:
    """How many cells equal the table."""
    return sum(
        (tally.lost_defined if by_defined else tally.lost_strict, tally.total) == TABLE[cell]
        for cell, tally in found.items()
    )
