# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of corpora/snp end as they say: SNP guests under honest and hostile hypervisors."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.host.registry import load_host
from guestemu.machine.page_attacks import ATTACKS
from guestemu.machine.psc_lies import LIES
from guestemu.program.text import load_program
from guestemu.replay.expectations import judge
from guestemu.report.trace.run import run_program

CORPUS = sorted(Path(__file__).parents[2].joinpath("corpora/snp").glob("*.prog"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_program_ends_as_it_says(path: Path) -> None:
    assert judge(run_program(load_program(path))) == ()


def test_every_lie_has_a_program() -> None:
    assert {f"lie-{name}" for name in LIES} <= {path.stem for path in CORPUS}


def test_every_attack_has_a_program() -> None:
    assert {f"attack-{name}" for name in ATTACKS} <= {path.stem for path in CORPUS}


def test_an_unknown_lie_is_refused() -> None:
    with pytest.raises(InputError, match="no lie 'stal'"):
        load_host("hostile-hypervisor:stal")
