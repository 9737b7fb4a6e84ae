# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios on real kernels, made once; the kernels are those of tests/linux."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestemu.guest.linux.load import linux_config
from guestemu.migration.sweep.experiment import Experiment
from guestemu.migration.sweep.run import CBIT, MEMORY_MIB, PATHS
from guestemu.migration.sweep.scenario import Variant

_SPEC = importlib.util.spec_from_file_location(
    "linux_fixtures", Path(__file__).parent.parent / "linux" / "conftest.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_FIXTURES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FIXTURES)
image_of = _FIXTURES.image_of

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(scope="module")
def experiment_of(image_of: Callable[[str], Path]) -> Iterator[MakeExperiment]:
    """An experiment by series, split, path and SEV feature, kept for a module; each: 3 machines."""
    made: dict[tuple[str, bool, str, str, bool], Experiment] = {}

    def make(
        series: str,
        split: bool = False,
        path: str = "plain",
        sev: str = "sev",
        round_trip: bool = False,
    ) -> Experiment:
        key = (series, split, path, sev, round_trip)
        if key not in made:
            config = linux_config(MEMORY_MIB, CBIT, sev, coherent=False)
            made[key] = Experiment(
                image_of(series), config, Variant(split, round_trip), PATHS[path]
            )
        return made[key]

    yield make
    for experiment in made.values():
        experiment.close()
