# SPDX-License-Identifier: GPL-2.0-or-later
"""Witnesses and random explorations as the records that text and JSON output are made of."""

from __future__ import annotations

import msgspec

from guestemu.migration.model.explain import explain, show_state
from guestemu.migration.model.order_model import is_stopped
from guestemu.migration.model.pct import PctResult
from guestemu.migration.model.witness import (
    Moment,
    PassStep,
    Stop,
    Witness,
    format_step,
    format_witness,
    lost_token,
)


class StepReport(msgspec.Struct, frozen=True):
    """One step of a witness, with the state after it in words (`-`: gone with the source)."""

    step: str
    side: str
    live_pass: int | None
    pte: str
    status: str
    dirty: str
    snapshot: str
    enc: str
    source: str
    destination: str


class WitnessReport(msgspec.Struct, frozen=True):
    """A witness as text and JSON show it. `lost` is the value that cannot be read any more;
    `steps` are filled only where they are asked for."""

    rank: int | None
    interleaving: str
    lost: str
    why: str
    lost_strict: bool
    lost_defined: bool
    steps: tuple[StepReport, ...] = ()


def report(witness: Witness, with_steps: bool = False) -> WitnessReport:
    """`witness` in words."""
    steps = tuple(_step_report(witness, moment) for moment in witness.moments)
    return WitnessReport(
        rank=witness.rank,
        interleaving=format_witness(witness),
        lost=f"t{lost_token(witness)}",
        why=explain(witness),
        lost_strict=witness.verdict.lost_strict,
        lost_defined=witness.verdict.lost_defined,
        steps=steps if with_steps else (),
    )


def _step_report(witness: Witness, moment: Moment) -> StepReport:
    step = moment.step
    side = "host" if isinstance(step, PassStep | Stop) else "guest"
    number = step.number if isinstance(step, PassStep) else None
    cells = show_state(moment.after, is_stopped(witness.scenario, moment.after))
    return StepReport(format_step(step), side, number, *cells)


class CellReport(msgspec.Struct, frozen=True):
    """Witnesses of one cell with its counts (`losing` is `lost_strict`)."""

    order: str
    script: str
    passes: int
    losing: int
    total: int
    lost_strict: int
    lost_defined: int
    witnesses: tuple[WitnessReport, ...]


class RandomReport(msgspec.Struct, frozen=True):
    """A random exploration of one cell, and the first losing interleaving it met."""

    order: str
    script: str
    passes: int
    result: PctResult
    first: WitnessReport | None
