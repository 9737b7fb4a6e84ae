# SPDX-License-Identifier: GPL-2.0-or-later
"""Engines: ways of choosing inputs, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.names import nearest
from guestemu.campaign.engines.atheris import AtherisEngine
from guestemu.campaign.engines.base import FuzzingEngine
from guestemu.campaign.engines.blind import BlindEngine
from guestemu.campaign.engines.exhaustive import ExhaustiveEngine
from guestemu.campaign.engines.hypothesis import HypothesisEngine
from guestemu.campaign.engines.random import RandomEngine

_ENGINES: Final = (
    AtherisEngine(),
    RandomEngine(),
    HypothesisEngine(),
    ExhaustiveEngine(),
    BlindEngine(),
)

ENGINES: Final[Mapping[str, FuzzingEngine]] = {engine.name: engine for engine in _ENGINES}
"""Every engine by name, the preferred one first."""


def choose_engine(name: str | None) -> tuple[FuzzingEngine, str]:
    """The engine called `name`, or the first that this machine has, with a note for the user
    (empty if there is nothing to say).

    Raises `InputError` for a name that does not exist, `MissingError` for one this machine lacks.
    """
    if name is None:
        missing = [engine for engine in _ENGINES if not engine.is_available()]
        engine = next(engine for engine in _ENGINES if engine.is_available())
        if missing and engine is not _ENGINES[0]:
            return engine, (
                f"{missing[0].remedy}; using the {engine.name} engine, 10 to 20 times slower"
            )
        return engine, ""
    wanted = ENGINES.get(name)
    if wanted is None:
        raise InputError(f"--engine {name}: no such engine; {nearest(name, ENGINES)}")
    if not wanted.is_available():
        raise MissingError(f"--engine {name}: {wanted.remedy}; or use --engine random")
    return wanted, ""
