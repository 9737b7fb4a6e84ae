# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of zoo campaigns as a file of JSON lines, so that a run can be continued."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
