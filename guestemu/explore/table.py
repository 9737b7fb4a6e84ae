# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of `guestemu explore`: each cell counted, and reduced if asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from guestemu.explore.count import Space
from guestemu.explore.model import Scenario
from guestemu.explore.notation import format_order, format_script
from guestemu.explore.reduce import Reduction, reduce


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One cell. `losing` is `lost_strict` under the name of the command's contract; `row` is the
    order's row in G.2 or None; `order_steps` and `script_steps` are in the notation. `seconds` is
    for the counting, `reduced_seconds` for the reduced exploration, which gives verdicts only."""

    row: int | None
    order: str
    order_steps: str
    script: str
    script_steps: str
    passes: int
    losing: int
    total: int
    lost_strict: int
    lost_defined: int
    states: int
    seconds: float
    reduced: Reduction | None = None
    reduced_seconds: float | None = None

    @property
    def is_agreed(self) -> bool:
        """Whether the reduced exploration, if it ran, gives the same zero or non-zero verdicts."""
        if self.reduced is None:
            return True
        counted = (self.lost_strict > 0, self.lost_defined > 0)
        return counted == (self.reduced.lost_strict, self.reduced.lost_defined)


def count_row(
    scenario: Scenario, with_reduction: bool, on_layer: Callable[[], None] = lambda: None
) -> Row:
    """Counts one cell."""
    start = time.perf_counter()
    space = Space(scenario, on_layer)
    counted = time.perf_counter()
    reduction = reduce(scenario) if with_reduction else None
    reduced = time.perf_counter()
    tally = space.tally
    return Row(
        row=scenario.order.row,
        order=scenario.order.name,
        order_steps=format_order(scenario.order.steps),
        script=scenario.script.name,
        script_steps=format_script(scenario.script.steps),
        passes=scenario.passes,
        losing=tally.lost_strict,
        total=tally.total,
        lost_strict=tally.lost_strict,
        lost_defined=tally.lost_defined,
        states=space.states,
        seconds=counted - start,
        reduced=reduction,
        reduced_seconds=reduced - counted if with_reduction else None,
    )
