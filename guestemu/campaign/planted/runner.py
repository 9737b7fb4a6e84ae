# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs cells as processes, a few at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import EngineError
from guestemu.campaign.planted.bug import ZooBug
from guestemu.campaign.planted.catalogue import repaired_configurations
from guestemu.campaign.planted.cell import CellResult, HuntCell
from guestemu.processes import end_signals_held

_POLL_S: Final = 0.05
_SHOWN: Final = 2000


def plan_cells(
    bugs: Iterable[ZooBug],
    *,
    is_repaired: bool,
    engine: str,
    arm: str,
    seeds: Iterable[int],
    execs: int | None,
    seconds: float | None,
) -> list[HuntCell]:
    """The cells of a run, seed by seed: one for each bug, or with `is_repaired` one for each
    different repaired configuration (named by the first bug whose twin it is)."""
    names = (
        [configuration.bugs[0] for configuration in repaired_configurations(bugs)]
        if is_repaired
        else [bug.id for bug in bugs]
    )
    return [
        HuntCell(name, not is_repaired, engine, arm, seed, execs, seconds)
        for seed in seeds
        for name in names
    ]


def is_covered(cell: HuntCell, result: CellResult) -> bool:
    """Whether `result` answers `cell`: the same campaign with a find, or with no smaller budget."""
    if cell.key != result.cell.key:
        return False
    if result.found:
        return cell.execs is None or result.executions <= cell.execs
    is_long = cell.seconds is None or result.seconds >= cell.seconds
    return is_long and (cell.execs is None or result.executions >= cell.execs)


def is_settled(cell: HuntCell, results: Iterable[CellResult], seeds: int) -> bool:
    """Whether the median over `seeds` campaigns is known to be "not found" without `cell`: more
    than half of them ran the same budget on the same bug and arm and found nothing."""
    missed = sum(
        is_covered(msgspec.structs.replace(cell, seed=result.cell.seed), result)
        for result in results
        if not result.found
    )
    return cell.planted and missed > seeds // 2


class _Running(msgspec.Struct):
    """A cell and its process."""

    cell: HuntCell
    process: subprocess.Popen[bytes]
    log: Path


def _start(cell: HuntCell, log: Path) -> _Running:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "guestemu.campaign.planted.cell",
                msgspec.json.encode(cell).decode(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        )
    return _Running(cell, process, log)


def _finish(running: _Running) -> CellResult:
    output, _ = running.process.communicate()
    log = running.log.read_text(errors="replace")
    running.log.unlink()
    if running.process.returncode or not output:
        raise EngineError(
            f"zoo campaign {msgspec.json.encode(running.cell).decode()} died with status "
            f"{running.process.returncode}: {log[-_SHOWN:]}"
        )
    return msgspec.json.decode(output, type=CellResult)


def run_cells(
    cells: Iterable[HuntCell],
    jobs: int,
    done: Callable[[CellResult], None],
    is_needless: Callable[[HuntCell], bool] = lambda cell: False,
) -> None:
    """Runs `cells`, `jobs` at a time; `done` gets every result as it comes. A cell that
    `is_needless` when its turn comes is left out.

    Raises `EngineError` for a process that died. However this ends, no process is left.
    """
    waiting = list(reversed(list(cells)))
    running: list[_Running] = []
    scratch = Path(tempfile.mkdtemp(prefix="guestemu-zoo-"))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                if not is_needless(cell):
                    with end_signals_held():
                        running.append(_start(cell, scratch / f"{len(waiting)}.log"))
            ended = [one for one in running if one.process.poll() is not None]
            for one in ended:
                running.remove(one)
                done(_finish(one))
            if not ended:
                time.sleep(_POLL_S)
    finally:
        for one in running:
            one.process.kill()
            one.process.communicate()
        shutil.rmtree(scratch, ignore_errors=True)
