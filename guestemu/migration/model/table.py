# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of `guestemu explore`: each cell counted, and reduced if asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import format_order, format_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.reduce import Reduction, reduce

TINY_S: Final = 1e-9


class CountRow(msgspec.Struct, frozen=True, omit_defaults=True):
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
) -> CountRow:
    """Counts one cell."""
    start = time.perf_counter()
    space = Space(scenario, on_layer)
    counted = time.perf_counter()
    reduction = reduce(scenario) if with_reduction else None
    reduced = time.perf_counter()
    tally = space.tally
    return CountRow(
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


class Table(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows and their sums. The reduction's figures are None if it did not run; `states_per_second`
    and `reduced_states_per_second` are states kept over the time of the exploration alone."""

    rows: tuple[CountRow, ...]
    states: int
    seconds: float
    states_per_second: float
    reduced_states: int | None = None
    reduced_states_per_second: float | None = None
    disagreements: int | None = None

    @staticmethod
    def of(rows: tuple[CountRow, ...], seconds: float) -> Table:
        """Sums `rows`, which took `seconds` altogether."""
        states = sum(row.states for row in rows)
        reductions = [row.reduced for row in rows if row.reduced is not None]
        rate = states / max(sum(row.seconds for row in rows), TINY_S)
        if not reductions:
            return Table(rows, states, seconds, rate)
        reduced = sum(reduction.states for reduction in reductions)
        reduced_seconds = sum(row.reduced_seconds or 0.0 for row in rows)
        return Table(
            rows=rows,
            states=states,
            seconds=seconds,
            states_per_second=rate,
            reduced_states=reduced,
            reduced_states_per_second=reduced / max(reduced_seconds, TINY_S),
            disagreements=sum(not row.is_agreed for row in rows),
        )
