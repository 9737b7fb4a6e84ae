# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of zoo campaigns as a file of JSON lines, so that a run can be continued."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.json_lines import read_json_lines
from guestemu.campaign.planted.cell import CellResult


class Median(msgspec.Struct, frozen=True):
    """Several seeds of one bug and arm: `found` of `seeds` campaigns; medians over all seeds, where
    a campaign that found nothing counts with all it ran (`is_bound`: the median is such a one).
    `seconds` are of CPU time where results have it."""

    seeds: int
    found: int
    execs: int
    seconds: float
    is_bound: bool


class CampaignComparison(msgspec.Struct, frozen=True):
    """Campaigns of two kinds on one bug. `ahead` is the share of their pairs in which the first
    kind needed fewer executions, ties counted half; `p` is that of Mann and Whitney's two-sided
    test (normal approximation with ties) that both need equally many."""

    ahead: float
    p: float


SIGNIFICANT: Final = 0.05
_EMPTY: Final = 2
"""Inputs without an operation that libFuzzer begins with."""


def read_results(path: Path) -> list[CellResult]:
    """The results in `path`, none if there is no such file; of a repeated cell the last.

    Raises `InputError` for a malformed line; a last line cut off by a crash is dropped.
    """
    results = read_json_lines(path, CellResult, "a zoo result")
    return list({result.cell.key: result for result in results}.values())


def median_of(results: Iterable[CellResult]) -> Median | None:
    """The median over seeds; None for no results."""
    ordered = sorted(results, key=lambda result: (not result.found, result.executions))
    if not ordered:
        return None
    middle = ordered[(len(ordered) - 1) // 2]
    return Median(
        seeds=len(ordered),
        found=sum(result.found for result in ordered),
        execs=middle.executions,
        seconds=middle.cpu_seconds or middle.seconds,
        is_bound=not middle.found,
    )


def compare(first: Sequence[CellResult], second: Sequence[CellResult]) -> CampaignComparison | None:
    """Executions until the find, where those of a campaign without one count as more than any.
    None where a kind has no campaign."""
    if not first or not second:
        return None
    own, others = ([_programs(one) for one in kind] for kind in (first, second))
    pairs = len(own) * len(others)
    wins = sum((a < b) + (a == b) / 2 for a in own for b in others)
    values = own + others
    size = len(values)
    ties = sum(values.count(value) ** 2 - 1 for value in values)
    variance = pairs / 12 * (size + 1 - ties / (size * (size - 1))) if size > 1 else 0.0
    if variance <= 0:
        return CampaignComparison(wins / pairs, 1.0)
    distance = max(abs(wins - pairs / 2) - 0.5, 0.0) / math.sqrt(variance)
    return CampaignComparison(wins / pairs, 2 * statistics.NormalDist().cdf(-distance))


def _programs(result: CellResult) -> float:
    """Programs that had an operation, until the find."""
    if not result.found:
        return math.inf
    return result.executions - (_EMPTY if result.cell.engine == "atheris" else 0)
