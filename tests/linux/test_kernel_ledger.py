# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's rows of real kernels: upstream's behaviour, unmodified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guestemu.study.ledger.cell import Row
from guestemu.study.ledger.flows import find_flows
from guestemu.study.ledger.matrix import find_failures, run_flow_rows
from guestemu.study.ledger.policies import find_policies, kernel_policy
from guestemu.study.ledger.rig import Rig

NAMES = ("host-einval", "lookup", "cpa", "hole")


def rows_of(policy: str, flow: str, kernel: bool, sev: str = "sev") -> list[Row]:
    one = kernel_policy(policy, sev) if kernel else find_policies((policy,), (), sev)[0]
    rig = Rig(one)
    rows = list(run_flow_rows(rig, find_flows((flow,))[0], find_failures(NAMES, sev)))
    rig.close()
    return rows


def seen(rows: list[Row], failure: str) -> list[tuple[object, ...]]:
    return [
        (row.step, row.noticed_by, row.migration, row.lost, row.lost_strict, row.leaked)
        for row in rows
        if row.failure == failure and row.when == "before"
    ]


def test_a_kernel_loses_what_our_code_of_its_generation_loses(
    image_of: Callable[[str], Path], series: str
) -> None:
    image_of(series)
    real = rows_of(f"linux:{series}", "decrypt-3", kernel=True)
    ours = rows_of(f"upstream-{series}", "decrypt-3", kernel=False)
    for failure in ("none", "host-einval", "lookup", "hole"):
        assert seen(real, failure) == seen(ours, failure)
    assert [row.lost for row in real if row.failure == "host-einval"] == [1, 1, 1]
    assert seen(real, "cpa") == [(0, ("caller",), "completed", 0, 0, 3)]


def test_a_kernel_drops_the_answer_to_a_dma_buffer(
    image_of: Callable[[str], Path], series: str
) -> None:
    image_of(series)
    rows = rows_of(f"linux:{series}", "dma-alloc", kernel=True)
    answers = [row for row in rows if row.failure == "host-einval"]
    assert len(answers) == 3
    for row in answers:
        assert (row.lost, row.noticed_by) == (1, ())


def test_a_dma_buffer_that_could_not_be_made_private_gets_no_new_owner(
    image_of: Callable[[str], Path], series: str
) -> None:
    image_of(series)
    rows = rows_of(f"linux:{series}", "dma-free", kernel=True)
    assert [row.lost for row in rows if row.failure == "host-einval"] == [1, 1, 1]
    assert seen(rows, "none") == [(-1, (), "completed", 0, 0, 0)]
    assert seen(rows, "cpa") == [(0, ("guest log",), "completed", 0, 0, None)]


@pytest.mark.parametrize(
    ("kind", "series", "flow"),
    [
        ("snp", "6.12", "decrypt-3"),
        ("snp", "6.12", "dma-pool"),
        pytest.param("tdx", "6.12", "decrypt-3", marks=pytest.mark.soak),
    ],
)
def test_a_kernel_of_another_kind_does_what_our_code_does(
    image_of: Callable[[str], Path], kind: str, series: str, flow: str
) -> None:
    image_of(series)
    real = rows_of(f"linux:{series}", flow, kernel=True, sev=kind)
    ours = rows_of(f"upstream-{series}", flow, kernel=False, sev=kind)
    for failure in ("none", "host-einval", "hole"):
        assert seen(real, failure) == seen(ours, failure)
        assert seen(real, failure) or failure == "hole"
    assert ("guest death" in seen(real, "host-einval")[0][1]) == (kind == "snp")
