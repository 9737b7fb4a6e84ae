# SPDX-License-Identifier: GPL-2.0-or-later
"""A cell of a hunt for planted bugs, run in the tests' process."""

from __future__ import annotations

from typing import NoReturn

from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.planted.cell import CellResult, Clock, HuntCell, make_session, result_of


def hunt_here(cell: HuntCell) -> CellResult:
    """Runs a cell of the random engine; the engine's error is the test's."""

    def leave(error: BaseException | None) -> NoReturn:
        raise error or RuntimeError("the random engine returns")

    session = make_session(cell)
    clock = Clock()
    RandomEngine().run(session, leave)
    return result_of(cell, session, clock)
