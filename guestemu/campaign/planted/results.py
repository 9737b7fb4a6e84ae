# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of zoo campaigns as a file of JSON lines, so that a run can be continued."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from guestemu.abi.errors import InputError
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
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    kept: dict[tuple[str, bool, str, str, int], CellResult] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            result = msgspec.json.decode(line, type=CellResult)
        except msgspec.DecodeError as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}:{number}: not a zoo result: {error}; delete the line"
            ) from None
        kept[result.cell.key] = result
    return list(kept.values())


def append_result(path: Path, result: CellResult) -> None:
    """Adds one line; a half line before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(msgspec.json.encode(result) + b"\n")


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
