# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels as TDs: the snippet agrees with them in every row of T18, and the findings hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.study.outcomes.guests import SNIPPET, outcome_guest
from guestemu.study.outcomes.td_findings import FINDINGS, run_finding
from guestemu.study.outcomes.td_table import run_table

BUDGET = 50_000_000
KERNELS = ["6.12", pytest.param("6.18", marks=pytest.mark.soak)]
KERNELS.append(pytest.param("7.3", marks=pytest.mark.soak))
IGNORES_SWIOTLB = {"6.12", "6.18"}
FOUND = {finding.name: finding for finding in FINDINGS}
QUICK = ["refused-decryption", "vmalloc", "cut"]


@pytest.mark.parametrize("series", KERNELS)
def test_the_snippet_does_what_the_kernel_does(
    series: str, image_of: Callable[[str], Path]
) -> None:
    guest = LOADER.guest(image_of(series), linux_config(128, 39, "tdx"), BUDGET)
    assert run_table(guest) == run_table(outcome_guest(SNIPPET, "tdx"))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("series", KERNELS)
def test_findings_hold(series: str, name: str, image_of: Callable[[str], Path]) -> None:
    assert run_finding(FOUND[name], image_of(series)).holds


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.12", "6.18", "7.3"])
def test_findings_at_boot(series: str, image_of: Callable[[str], Path]) -> None:
    assert run_finding(FOUND["vmmcall"], image_of(series)).holds
    swiotlb = run_finding(FOUND["swiotlb"], image_of(series))
    assert "reached rest_init" in swiotlb.lines[0]
    assert swiotlb.holds == (series in IGNORES_SWIOTLB)
